#include "runtime/requests/strict_json.h"

#include <string_view>
#include <utility>
#include <vector>

namespace headrace {
namespace {

using Json = nlohmann::json;

// The parser's own words without its prefix, and without the token it quotes last: that may be
// megabytes long or invalid UTF-8.
std::string reason_of(const nlohmann::detail::exception& error) {
  std::string_view text = error.what();
  if (error.id == 406) return "a number is too large";
  if (const size_t column = text.find("column "); column != std::string_view::npos) {
    if (const size_t colon = text.find(": ", column); colon != std::string_view::npos) {
      text.remove_prefix(colon + 2);
    }
  }
  text = text.substr(0, text.find("; last read"));
  std::string reason;
  for (const char c : text.substr(0, 200)) reason += c >= 0x20 && c < 0x7f ? c : '?';
  return reason;
}

// Builds the value and stops at a limit. `open_` points at the arrays and objects that are being
// read: a container does not move while one of its members is open.
class Builder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return add(nullptr); }
  bool boolean(bool v) override { return add(v); }
  bool number_integer(number_integer_t v) override { return add(v); }
  bool number_unsigned(number_unsigned_t v) override { return add(v); }
  bool number_float(number_float_t v, const string_t&) override { return add(v); }
  bool string(string_t& v) override { return add(std::move(v)); }
  bool binary(binary_t&) override { return false; }  // does not occur in JSON text
  bool start_object(size_t) override { return open(Json::value_t::object); }
  bool start_array(size_t) override { return open(Json::value_t::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    auto& members = open_.back()->get_ref<Json::object_t&>();
    const auto [place, is_new] = members.try_emplace(name);
    if (!is_new && !repeated_key) repeated_key = name;
    member_ = &place->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    problem = "at byte " + std::to_string(position) + ": " + reason_of(error);
    return false;
  }

  Json root;
  std::optional<std::string> repeated_key;
  std::string problem;

 private:
  bool add(Json&& value) { return place(std::move(value)) != nullptr; }

  bool open(Json::value_t kind) {
    if (open_.size() == kMaxJsonDepth) {
      problem = "it is nested deeper than " + std::to_string(kMaxJsonDepth) + " levels";
      return false;
    }
    Json* const slot = place(Json(kind));
    if (slot == nullptr) return false;
    open_.push_back(slot);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Json* place(Json&& value) {
    if (++values_ > kMaxJsonValues) {
      problem = "it holds more than " + std::to_string(kMaxJsonValues) + " values";
      return nullptr;
    }
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    if (open_.back()->is_object()) {
      *member_ = std::move(value);
      return member_;
    }
    auto& items = open_.back()->get_ref<Json::array_t&>();
    items.push_back(std::move(value));
    return &items.back();
  }

  std::vector<Json*> open_;
  Json* member_ = nullptr;  // of the object in open_.back(), after its key was read
  size_t values_ = 0;
};

}  // namespace

StrictJson parse_strict_json(const std::string& text) {
  Builder builder;
  if (!Json::sax_parse(text, &builder)) throw JsonError(builder.problem);
  return {std::move(builder.root), std::move(builder.repeated_key)};
}

}  // namespace headrace
