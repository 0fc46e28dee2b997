#include "runtime/requests/request_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "engine/error.h"
#include "runtime/error.h"
#include "runtime/requests/id_set.h"

namespace headrace {
namespace {

constexpr size_t kReadBytes = size_t{256} << 10;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

bool is_blank(const std::string& text) {
  return text.find_first_not_of(" \t\r\n\v\f") == std::string::npos;
}

int open_input(const std::string& path) {
  if (path == "-") return STDIN_FILENO;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (fd < 0 || ::fstat(fd, &status) != 0) {
    const std::string reason = std::strerror(errno);
    if (fd >= 0) ::close(fd);
    throw UsageError("cannot open the input file " + path + ": " + reason +
                     ". Check the path and its permissions");
  }
  if (S_ISDIR(status.st_mode)) {
    ::close(fd);
    throw UsageError("the input " + path + " is a directory: give a file of JSON lines");
  }
  return fd;
}

}  // namespace

bool comes_once(const std::string& input) {
  struct stat status {};
  if (input == "-") return true;
  return ::stat(input.c_str(), &status) == 0 && !S_ISREG(status.st_mode) &&
         !S_ISDIR(status.st_mode);
}

struct RequestReader::Impl {
  Impl(const std::string& input, RequestDefaults request_defaults)
      : path(input), defaults(std::move(request_defaults)), fd(open_input(input)) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (fd != STDIN_FILENO) ::close(fd);
  }

  bool take_part();
  bool has_line() const;
  bool read_line(std::string& text, bool& too_long);
  void refill();
  void make_unique(std::variant<Request, BadLine>& item);

  const std::string path;
  const RequestDefaults defaults;
  const int fd;
  int64_t line = 0;
  IdSet seen;
  std::vector<char> buffer = std::vector<char>(kReadBytes);
  size_t used = 0;    // of the buffer's bytes, how many are read out
  size_t filled = 0;  // and how many there are
  bool at_end = false;

  // The line that is being read: what was taken out of the buffer.
  std::string part;
  bool has_part = false;
  bool part_too_long = false;  // its bytes are passed over, not kept
};

void RequestReader::Impl::refill() {
  ssize_t count = 0;
  do {
    count = ::read(fd, buffer.data(), buffer.size());
  } while (count < 0 && errno == EINTR);
  if (count < 0) {
    const std::string name = path == "-" ? "standard input" : path;
    throw IoError("reading " + name + " failed after line " + std::to_string(line) + ": " +
                  std::strerror(errno) + ". Run again with --resume once the file can be read");
  }
  used = 0;
  filled = static_cast<size_t>(count);
  at_end = count == 0;
}

bool RequestReader::Impl::has_line() const {
  return std::memchr(buffer.data() + used, '\n', filled - used) != nullptr;
}

// Moves what the buffer has of the line into `part`; true if that was its end.
bool RequestReader::Impl::take_part() {
  const char* const begin = buffer.data() + used;
  const void* const found = std::memchr(begin, '\n', filled - used);
  const char* const end =
      found == nullptr ? buffer.data() + filled : static_cast<const char*>(found);
  const auto count = static_cast<size_t>(end - begin);
  has_part |= used < filled;
  if (part.size() + count > kMaxLineBytes) {
    part_too_long = true;
    std::string().swap(part);
  }
  if (!part_too_long) part.append(begin, count);
  used += count + (found == nullptr ? 0 : 1);
  return found != nullptr;
}

// The next line without its break; false at the end.
bool RequestReader::Impl::read_line(std::string& text, bool& too_long) {
  while (!take_part() && !at_end) refill();
  if (!std::exchange(has_part, false)) return false;
  text = std::exchange(part, {});
  too_long = std::exchange(part_too_long, false);
  if (++line == 1 && text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  if (text.ends_with('\r')) text.pop_back();
  return true;
}

void RequestReader::Impl::make_unique(std::variant<Request, BadLine>& item) {
  std::string& id = std::visit([](auto& i) -> std::string& { return i.custom_id; }, item);
  if (seen.insert(id)) return;
  const std::string own = "line-" + std::to_string(line);
  std::string unique = own;
  for (int copy = 2; !seen.insert(unique); ++copy) unique = own + "-" + std::to_string(copy);
  if (auto* bad = std::get_if<BadLine>(&item)) {
    bad->custom_id = std::move(unique);
    return;
  }
  item = BadLine{std::move(unique), "duplicate_custom_id",
                 "line " + std::to_string(line) + ": the \"custom_id\" \"" + id +
                     "\" stands already on an earlier line (a line without one gets "
                     "\"line-<number>\"): give each line its own"};
}

RequestReader::RequestReader(const std::string& path, RequestDefaults defaults)
    : impl_(std::make_unique<Impl>(path, std::move(defaults))) {}

RequestReader::~RequestReader() = default;

std::optional<std::variant<Request, BadLine>> RequestReader::next() {
  std::string text;
  bool too_long = false;
  while (impl_->read_line(text, too_long)) {
    if (!too_long && is_blank(text)) continue;
    std::variant<Request, BadLine> item;
    if (too_long) {
      const std::string number = std::to_string(impl_->line);
      item = BadLine{"line-" + number, "line_too_long",
                     "line " + number + ": longer than 8 MiB: split it or shorten the prompt"};
    } else {
      item = parse_request(text, impl_->line, impl_->defaults);
    }
    impl_->make_unique(item);
    if (!too_long) {
      std::visit([&](auto& made) { made.digest = line_digest(text); }, item);
    }
    return item;
  }
  return std::nullopt;
}

bool RequestReader::ready(int milliseconds) {
  while (!impl_->has_line() && !impl_->at_end) {
    pollfd input{impl_->fd, POLLIN, 0};
    if (::poll(&input, 1, milliseconds) <= 0) return false;
    impl_->take_part();
    impl_->refill();
  }
  return true;
}

int64_t RequestReader::line() const { return impl_->line; }

uint64_t line_digest(std::string_view line) {
  std::string kept;
  kept.reserve(line.size());
  bool in_string = false, escaped = false;
  for (const char c : line) {
    if (!in_string && (c == ' ' || c == '\t' || c == '\r')) continue;
    kept += c;
    if (c == '"' && !escaped) in_string = !in_string;
    escaped = in_string && c == '\\' && !escaped;
  }
  return XXH3_64bits(kept.data(), kept.size());
}

}  // namespace headrace
