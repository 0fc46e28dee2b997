// Opens or builds the offload file of a model as a rank would, in a process that tests can kill,
// start twice or put under limits:
//   offload_builder MODEL DIRECTORY [--host-memory BYTES] [--hold]
// --hold: goes on using the file until standard input ends. Standard
// output: the log lines, then the path. Exit codes: as headrace's.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "engine/error.h"
#include "engine/memory/offload_file.h"

namespace {

void run(int argc, char** argv) {
  using namespace headrace;
  uint64_t memory = uint64_t{64} << 20;
  bool hold = false;
  for (int i = 3; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--hold") hold = true;
    if (option == "--host-memory") memory = std::strtoull(argv[++i], nullptr, 10);
  }
  const auto checkpoint = Checkpoint::open(argv[1]);
  const StageRange range{0, checkpoint->config().n_layers, true, true};
  const WeightLayout layout = weight_layout(*checkpoint, range);
  MemoryBudget budget("host memory", memory);
  ThreadPool threads(1);
  const auto file = OffloadFile::open_or_build({argv[2]}, *checkpoint, range, layout, budget,
                                               threads, [](const std::string& line) {
                                                 std::printf("%s\n", line.c_str());
                                                 std::fflush(stdout);
                                               });
  std::printf("ready %s\n", file->file().path().c_str());
  std::fflush(stdout);
  if (hold) (void)std::getchar();
}

}  // namespace

int main(int argc, char** argv) {
  const auto say = [](const std::exception& error, int code) {
    std::fprintf(stderr, "%s\n", error.what());
    return code;
  };
  try {
    if (argc < 3) return 2;
    run(argc, argv);
    return 0;
  } catch (const headrace::ModelError& error) {
    return say(error, 65);
  } catch (const headrace::DoesNotFit& error) {
    return say(error, 73);
  } catch (const headrace::IoError& error) {
    return say(error, 74);
  } catch (const std::exception& error) {
    return say(error, 70);
  }
}
