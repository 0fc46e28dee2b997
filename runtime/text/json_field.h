// A JSON value together with the place it stands at, so that every complaint can name it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "engine/error.h"

namespace headrace {

class JsonField {
 public:
  // `place`: the file, then the path within it. The value must outlive the field.
  JsonField(const nlohmann::json& value, std::string place)
      : value_(&value), place_(std::move(place)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& place() const { return place_; }

  // `what` ends with the cure.
  [[noreturn]] void fail(const std::string& what) const { throw ModelError(place_ + ": " + what); }

  // A member; nullopt if missing or null.
  std::optional<JsonField> find(const std::string& key) const {
    require(value_->is_object(), "an object");
    const auto member = value_->find(key);
    if (member == value_->end() || member->is_null()) return std::nullopt;
    return JsonField(*member, place_ + "." + key);
  }
  JsonField at(const std::string& key) const {
    if (auto member = find(key)) return *member;
    JsonField(*value_, place_ + "." + key).fail("missing. Fetch the model's files again.");
  }
  JsonField at(size_t index) const {
    return JsonField(value_->at(index), place_ + "[" + std::to_string(index) + "]");
  }

  size_t array_size() const {
    require(value_->is_array(), "an array");
    return value_->size();
  }
  const nlohmann::json& object() const {
    require(value_->is_object(), "an object");
    return *value_;
  }
  const std::string& string() const {
    require(value_->is_string(), "a string");
    return value_->get_ref<const std::string&>();
  }
  int64_t integer() const {
    require(value_->is_number_integer(), "an integer");
    return value_->is_number_unsigned() && value_->get<uint64_t>() > INT64_MAX
               ? INT64_MAX
               : value_->get<int64_t>();
  }
  bool boolean() const {
    require(value_->is_boolean(), "true or false");
    return value_->get<bool>();
  }
  bool boolean_or(const std::string& key, bool otherwise) const {
    const auto member = find(key);
    return member ? member->boolean() : otherwise;
  }

 private:
  void require(bool holds, const char* type) const {
    if (!holds) {
      fail(std::string("must be ") + type + ", is of type " + value_->type_name() +
           ". Fetch the model's files again.");
    }
  }

  const nlohmann::json* value_;
  std::string place_;
};

}  // namespace headrace
