#include "runtime/results/results_scan.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "runtime/results/result_json.h"

namespace headrace {
namespace {

using Json = nlohmann::json;

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr size_t kMaxLineBytes = size_t{1} << 30;

// Picks the outermost "custom_id", the "request_id" of its "response" and whether the record is an
// error; keeps nothing else.
class RecordReader : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(number_integer_t) override { return value(); }
  bool number_unsigned(number_unsigned_t) override { return value(); }
  bool number_float(number_float_t, const string_t&) override { return value(); }
  bool binary(binary_t&) override { return value(); }
  bool string(string_t& text) override {
    if (depth_ == 1 && key_ == "custom_id") id = std::move(text);
    if (depth_ == 2 && key_ == "response" && response_key_ == "request_id") {
      request_id = std::move(text);
    }
    return value();
  }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      key_ = std::move(name);
      has_response = has_response || key_ == "response";
    } else if (depth_ == 2) {
      response_key_ = std::move(name);
    }
    return true;
  }
  bool start_object(size_t) override {
    has_error = has_error || (depth_ == 1 && key_ == "error");
    return ++depth_ > 0;
  }
  bool end_object() override { return depth_-- > 0; }
  bool start_array(size_t) override { return depth_++ > 0; }
  bool end_array() override { return depth_-- > 0; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

  std::optional<std::string> id;
  std::string request_id;
  bool has_response = false;
  bool has_error = false;  // "error" is an object, not null

 private:
  bool value() const { return depth_ > 0; }  // a record is an object

  int depth_ = 0;
  std::string key_;
  std::string response_key_;
};

// Takes the file's lines one after the other.
class Scanner {
 public:
  explicit Scanner(const OpenFile& file) : file_(file) {}

  void add_piece(const char* bytes, size_t count) {
    if (count == 0) return;
    if (bad_line_ != 0) throw_bad(bad_line_, "is not a record");
    line_bytes_ += count;
    if (line_bytes_ <= kMaxLineBytes) text_.append(bytes, count);
  }

  void end_line() {
    if (bad_line_ != 0) throw_bad(bad_line_, "is not a record");
    ++number_;
    if (line_bytes_ > kMaxLineBytes) throw_bad(number_, "is longer than 1 GiB");
    RecordReader record;
    if (!Json::sax_parse(text_, &record) || !record.has_response || !record.id) {
      bad_line_ = number_;  // torn if nothing follows
    } else {
      if (!scan_.ids.insert(*record.id))
        throw_bad(number_, "repeats the custom_id of an earlier line");
      if (const auto digest = digest_of(record.request_id)) {
        scan_.lines.insert_hash(custom_id_hash(*record.id, *digest));
      }
      ++scan_.records;
      scan_.errors += record.has_error;
      scan_.whole_bytes += static_cast<int64_t>(line_bytes_) + 1;
    }
    text_.clear();
    line_bytes_ = 0;
  }

  ResultsScan take() { return std::move(scan_); }

 private:
  [[noreturn]] void throw_bad(int64_t line, const std::string& what) const {
    throw IoError("cannot resume " + file_.path() + ": line " + std::to_string(line) + " " + what +
                  ". Take that line out of the file and run again with --resume, or give another "
                  "--output");
  }

  const OpenFile& file_;
  ResultsScan scan_;
  std::string text_;
  size_t line_bytes_ = 0;
  int64_t number_ = 0;
  int64_t bad_line_ = 0;
};

}  // namespace

ResultsScan scan_results(const OpenFile& file) {
  Scanner scanner(file);
  std::vector<char> buffer(kReadBytes);
  while (const size_t filled = file.read_up_to(buffer.data(), buffer.size())) {
    const std::string_view bytes(buffer.data(), filled);
    size_t begin = 0;
    for (size_t end = 0; (end = bytes.find('\n', begin)) != bytes.npos; begin = end + 1) {
      scanner.add_piece(bytes.data() + begin, end - begin);
      scanner.end_line();
    }
    scanner.add_piece(bytes.data() + begin, filled - begin);
  }
  return scanner.take();
}

}  // namespace headrace
