// Seeded mutation of valid files against one reader; see README.md.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "engine/sanitizer.h"
#include "tests/fuzz/mutate.h"
#include "tests/fuzz/readers.h"
#include "tests/unit/model_files.h"

// Of the sanitizers, where they are built in. An input has at most a few megabytes.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() {
  return "max_allocation_size_mb=512:hard_rss_limit_mb=2048:quarantine_size_mb=64";
}
extern "C" const char* __ubsan_default_options();
extern "C" const char* __ubsan_default_options() { return "halt_on_error=1:print_stacktrace=1"; }

namespace headrace::fuzz {
namespace {

using Clock = std::chrono::steady_clock;

#ifdef HEADRACE_ASAN
constexpr bool kLimitsAddresses = false;  // its shadow memory takes terabytes of them
#else
constexpr bool kLimitsAddresses = true;
#endif
constexpr rlim_t kMostAddresses = rlim_t{1} << 30;
constexpr auto kHang = std::chrono::seconds(60);
constexpr int kFailed = 1;
constexpr int kUsage = 2;

struct Options {
  const Reader* reader = nullptr;
  uint64_t seed = 1;
  uint64_t rounds = 0;
  double seconds = 0;
  std::string write;
  std::vector<std::string> files;
};

// What the process that reads tells the one that watches, also when it dies.
struct Progress {
  std::atomic<uint64_t> seed = 0;
  std::atomic<uint64_t> accepted = 0;
  std::atomic<uint64_t> refused = 0;
};

int usage() {
  std::fprintf(stderr,
               "usage: fuzz_readers READER [--seed N] [--rounds N | --seconds S]\n"
               "       fuzz_readers READER FILE...          reads these inputs\n"
               "       fuzz_readers READER --write FOLDER   writes the valid inputs\n"
               "readers:");
  for (const Reader& reader : readers()) std::fprintf(stderr, " %s", reader.name);
  std::fprintf(stderr, "\n");
  return kUsage;
}

bool parse(int argc, char** argv, Options& options) {
  if (argc < 2) return false;
  options.reader = find_reader(argv[1]);
  bool is_number = true;
  const auto number = [&is_number](const char* text) {
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    is_number &= end != text && *end == '\0' && value >= 0;
    return value;
  };
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i];
    if (!word.starts_with("--")) {
      options.files.push_back(word);
    } else if (i + 1 == argc) {
      return false;
    } else if (word == "--seed") {
      options.seed = static_cast<uint64_t>(number(argv[++i]));
    } else if (word == "--rounds") {
      options.rounds = static_cast<uint64_t>(number(argv[++i]));
    } else if (word == "--seconds") {
      options.seconds = number(argv[++i]);
    } else if (word == "--write") {
      options.write = argv[++i];
    } else {
      return false;
    }
  }
  const bool has_work =
      options.rounds > 0 || options.seconds > 0 || !options.files.empty() || !options.write.empty();
  return options.reader != nullptr && is_number && has_work;
}

// In the child. Its exit code; an exception that no reader may throw ends it.
int read_mutations(const Options& options, const std::string& folder, Progress& progress) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (kLimitsAddresses) {
    const rlimit limit{kMostAddresses, kMostAddresses};
    ::setrlimit(RLIMIT_AS, &limit);
  }
  const std::vector<std::string> seeds = options.reader->seeds(folder);
  for (const std::string& seed : seeds) {
    promise(options.reader->accepts(folder, seed), "a valid input is refused");
  }
  const auto begin = Clock::now();
  const auto is_over = [&](uint64_t done) {
    if (options.rounds > 0) return done == options.rounds;
    return std::chrono::duration<double>(Clock::now() - begin).count() > options.seconds;
  };
  for (uint64_t done = 0; !is_over(done); ++done) {
    progress.seed = options.seed + done;
    const bool accepted = options.reader->accepts(folder, mutated(seeds, progress.seed));
    ++(accepted ? progress.accepted : progress.refused);
  }
  return 0;
}

int reading_process(const Options& options, const std::string& folder, Progress& progress) {
  try {
    return read_mutations(options, folder, progress);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "out of memory\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "not an error that the reader may throw: %s\n", error.what());
  }
  return kFailed;
}

// The child's wait status; ends it where one input takes too long.
int watch(pid_t child, const Progress& progress, bool& hangs) {
  uint64_t last = 0;
  auto since = Clock::now();
  for (int status = 0;; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
    if (::waitpid(child, &status, WNOHANG) == child) return status;
    if (progress.seed != last) {
      last = progress.seed;
      since = Clock::now();
    } else if (!hangs && Clock::now() - since > kHang) {
      hangs = true;
      ::kill(child, SIGKILL);
    }
  }
}

long peak_mib() {
  rusage used{};
  ::getrusage(RUSAGE_CHILDREN, &used);
  return used.ru_maxrss >> 10;
}

int fuzz(const Options& options, const std::string& folder) {
  void* const shared =
      ::mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return kFailed;
  Progress& progress = *new (shared) Progress;
  const pid_t child = ::fork();
  if (child == 0) std::exit(reading_process(options, folder, progress));
  bool hangs = false;
  const int status = watch(child, progress, hangs);
  const uint64_t inputs = progress.accepted + progress.refused;
  std::printf("%s: %llu inputs from seed %llu on, %llu of them accepted; peak memory %ld MiB\n",
              options.reader->name, static_cast<unsigned long long>(inputs),
              static_cast<unsigned long long>(options.seed),
              static_cast<unsigned long long>(progress.accepted.load()), peak_mib());
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    const std::string how = hangs ? "hangs"
                            : WIFSIGNALED(status)
                                ? std::string("dies: ") + strsignal(WTERMSIG(status))
                                : "fails, see above";
    std::printf("FOUND: the input of seed %llu %s. Again: fuzz_readers %s --seed %llu --rounds 1\n",
                static_cast<unsigned long long>(progress.seed.load()), how.c_str(),
                options.reader->name, static_cast<unsigned long long>(progress.seed.load()));
    return kFailed;
  }
  // A hundredth of each, where there are enough to say.
  const uint64_t fewer = std::min(progress.accepted.load(), progress.refused.load());
  if (inputs == 0 || (inputs >= 1000 && fewer * 100 < inputs)) {
    std::printf("hardly any inputs, or hardly any accepted or refused: this finds nothing\n");
    return kFailed;
  }
  return 0;
}

int read_files(const Options& options, const std::string& folder) {
  for (const std::string& file : options.files) {
    const bool accepted = options.reader->accepts(folder, test::read_file(file));
    std::printf("%s: %s\n", file.c_str(), accepted ? "accepted" : "refused");
  }
  return 0;
}

int write_seeds(const Options& options, const std::string& folder) {
  int number = 0;
  for (const std::string& seed : options.reader->seeds(folder)) {
    test::write_file(options.write + "/seed-" + std::to_string(number++), seed);
  }
  return 0;
}

int run(const Options& options) {
  if (::access("/dev/shm", W_OK) == 0) ::setenv("TMPDIR", "/dev/shm", /*overwrite=*/0);
  const test::TempDir folder;
  if (!options.write.empty()) return write_seeds(options, folder.path());
  if (!options.files.empty()) return read_files(options, folder.path());
  return fuzz(options, folder.path());
}

}  // namespace
}  // namespace headrace::fuzz

int main(int argc, char** argv) {
  headrace::fuzz::Options options;
  if (!headrace::fuzz::parse(argc, argv, options)) return headrace::fuzz::usage();
  return headrace::fuzz::run(options);
}
