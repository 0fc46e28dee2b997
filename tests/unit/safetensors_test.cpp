// safetensors: what is read, and that every kind of damage is refused with file and tensor.
#include "engine/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using nlohmann::json;
using test::expect_model_error;
using test::le;
using test::TempDir;

std::string with_header(const std::string& header, size_t data) {
  return le<uint64_t>(header.size()) + header + std::string(data, 'd');
}

class Safetensors : public ::testing::Test {
 protected:
  SafetensorsHeader read(const std::string& bytes) {
    test::write_file(path_, bytes);
    return read_safetensors_header(ReadFile(path_));
  }
  void refused(const std::string& bytes, std::vector<std::string> parts) {
    parts.push_back(path_);
    expect_model_error([&] { read(bytes); }, parts);
  }
  // A header with the one tensor "t".
  void refused_tensor(const std::string& description, std::vector<std::string> parts) {
    parts.push_back("\"t\"");
    refused(with_header("{\"t\":" + description + "}", 64), std::move(parts));
  }

  TempDir dir_;
  std::string path_ = dir_ / "model.safetensors";
};

TEST_F(Safetensors, ReadsShapesTypesAndPlaces) {
  const std::string header = R"({"__metadata__":{"format":"pt"},
    "b":{"dtype":"F16","shape":[2,3],"data_offsets":[16,28]},
    "a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},
    "scalar":{"dtype":"BF16","shape":[],"data_offsets":[28,30]},
    "cube":{"dtype":"F16","shape":[2,3,4],"data_offsets":[30,78]},
    "none":{"dtype":"F32","shape":[0,8],"data_offsets":[30,30]},
    "ids":{"dtype":"I64","shape":[1],"data_offsets":[78,86]}})";
  const SafetensorsHeader read_back = read(with_header(header, 86));
  ASSERT_EQ(read_back.tensors.size(), 5u);
  const uint64_t data = 8 + header.size();
  const TensorInfo& a = read_back.tensors[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.rows, 1);
  EXPECT_EQ(a.cols, 4);
  EXPECT_EQ(a.offset, data);
  const TensorInfo& b = read_back.tensors[1];
  EXPECT_EQ(b.dtype, DType::kF16);
  EXPECT_EQ(b.rows, 2);
  EXPECT_EQ(b.cols, 3);
  EXPECT_EQ(b.offset, data + 16);
  EXPECT_EQ(b.bytes, 12u);
  EXPECT_EQ(read_back.tensors[2].name, "scalar");
  EXPECT_EQ(read_back.tensors[2].cols, 1);
  EXPECT_EQ(read_back.tensors[3].name, "none");
  EXPECT_EQ(read_back.tensors[4].rows, 6);
  ASSERT_EQ(read_back.unusable.size(), 1u);
  EXPECT_NE(read_back.unusable.at("ids").find("I64"), std::string::npos);
}

TEST_F(Safetensors, HeaderLength) {
  refused("", {"byte 0", "too short"});
  refused("\x02\x00\x00", {"byte 0", "too short"});
  refused(le<uint64_t>(3) + "{}", {"byte 0", "header of 3 bytes"});
  refused(le(~uint64_t{0}) + "{}", {"byte 0", "header of 18446744073709551615"});
  refused(le<uint64_t>(100'000'001) + "{}", {"byte 0", "100000001"});
}

TEST_F(Safetensors, HeaderText) {
  refused(with_header("", 0), {"header", "byte", "JSON"});
  refused(with_header("[]", 0), {"header", "not a JSON object"});
  refused(with_header("{\"t\":", 0), {"header", "byte", "not valid JSON"});
  refused(with_header("{\"t\":\"\xff\"}", 0), {"header", "not valid JSON"});
  refused(with_header("{\"t\":1e999}", 0), {"header", "not valid JSON"});
  refused(with_header("{\"t\":{},\"t\":{}}", 0), {"\"t\" appears twice"});
  refused(with_header(R"({"t":{"dtype":"F32","dtype":"F32"}})", 0), {"\"dtype\" appears twice"});
  refused(with_header("{\"t\":" + std::string(1 << 20, '['), 0), {"nested deeper"});
  refused(with_header("{\"t\":" + std::string(60000, '[') + std::string(60000, ']') + "}", 0),
          {"nested deeper"});
}

TEST_F(Safetensors, TensorEntries) {
  refused_tensor("3", {"object"});
  refused_tensor(R"({"shape":[4],"data_offsets":[0,16]})", {"dtype is missing"});
  refused_tensor(R"({"dtype":"F32","data_offsets":[0,16]})", {"shape is missing"});
  refused_tensor(R"({"dtype":"F32","shape":[4]})", {"data_offsets is missing"});
  refused_tensor(R"({"dtype":7,"shape":[4],"data_offsets":[0,16]})", {"dtype is not"});
  refused_tensor(R"({"dtype":"F32","shape":4,"data_offsets":[0,16]})", {"shape is not"});
  refused_tensor(R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})", {"shape", "-4"});
  refused_tensor(R"({"dtype":"F32","shape":[4.5],"data_offsets":[0,16]})", {"shape", "4.5"});
  refused_tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[0]})", {"not a pair"});
  refused_tensor(R"({"dtype":"F32","shape":[4],"data_offsets":["0",16]})", {"data_offsets"});
  refused_tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})", {"beyond"});
  refused_tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[52,68]})", {"beyond", "64 bytes"});
  refused_tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615]})",
                 {"beyond"});
  refused_tensor(R"({"dtype":"F32","shape":[5],"data_offsets":[0,16]})", {"16 bytes", "need 20"});
  refused_tensor(R"({"dtype":"I64","shape":[4],"data_offsets":[0,16]})", {"need 32"});
  refused_tensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})",
                 {"shape", "impossible dimension"});
  refused_tensor(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]})",
                 {"shape", "impossible dimension"});
  // Its size in bytes would be 2^64.
  refused_tensor(R"({"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,4]})",
                 {"\"t\""});
}

TEST_F(Safetensors, OverlappingTensors) {
  const std::string one = R"("a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]})";
  for (const char* other : {"[12,28]", "[0,16]"}) {
    const std::string two =
        R"("b":{"dtype":"F32","shape":[4],"data_offsets":)" + std::string(other) + "}";
    refused(with_header("{" + one + "," + two + "}", 64), {"\"b\"", "overlap", "\"a\""});
  }
}

}  // namespace
}  // namespace headrace
