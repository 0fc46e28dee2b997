#include "launch/options.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace headrace {
namespace {

TEST(ParseSize, NumbersWithUnits) {
  const auto size = [](const std::string& text) { return parse_size("--host-memory", text); };
  EXPECT_EQ(size("4096"), 4096u);
  EXPECT_EQ(size("4096B"), 4096u);
  EXPECT_EQ(size("1KiB"), 1024u);
  EXPECT_EQ(size("1K"), 1024u);
  EXPECT_EQ(size("1KB"), 1000u);
  EXPECT_EQ(size("900MiB"), uint64_t{900} << 20);
  EXPECT_EQ(size("900M"), uint64_t{900} << 20);
  EXPECT_EQ(size("900MB"), 900000000u);
  EXPECT_EQ(size("8GiB"), uint64_t{8} << 30);
  EXPECT_EQ(size("8G"), uint64_t{8} << 30);
  EXPECT_EQ(size("1.5GB"), 1500000000u);
  EXPECT_EQ(size("0.5KiB"), 512u);
  EXPECT_EQ(size("2TiB"), uint64_t{2} << 40);
  EXPECT_EQ(size("1e3"), 1000u);
}

TEST(ParseSize, WhatIsNoSizeIsRefusedWithTheOptionsName) {
  for (const char* text : {"", "MiB", "-5", "0", "0GiB", "0.4", "1e300", "99999999TiB", "nan",
                           "inf", "8 GiB", " 8GiB", "8GiB ", "8XB", "8GiBs", "0x10", "1,5GiB"}) {
    try {
      parse_size("--host-memory", text);
      ADD_FAILURE() << "\"" << text << "\" was taken for a size";
    } catch (const UsageError& e) {
      const std::string message = e.what();
      EXPECT_TRUE(message.starts_with(std::string("--host-memory ") + text + " is not a size"))
          << message;
      EXPECT_NE(message.find("8GiB"), std::string::npos) << message;
    }
  }
}

TEST(ParseList, PositiveNumbersBetweenCommas) {
  EXPECT_EQ(parse_list("--split", "10,14"), (std::vector{10, 14}));
  EXPECT_EQ(parse_list("--split", "7"), (std::vector{7}));
  EXPECT_EQ(parse_list("--split", "1,2,3,400"), (std::vector{1, 2, 3, 400}));
  EXPECT_EQ(parse_list("--split", ""), std::vector<int>());
}

TEST(ParseList, WhatIsNoListIsRefusedWithTheOptionsName) {
  for (const char* text : {",", "10,", ",14", "10,,14", "10;14", "10, 14", " 10", "0,3", "-1,3",
                           "3,x", "1.5,2", "99999999999"}) {
    try {
      parse_list("--split", text);
      ADD_FAILURE() << "\"" << text << "\" was taken for a list";
    } catch (const UsageError& e) {
      const std::string message = e.what();
      EXPECT_TRUE(message.starts_with(std::string("--split ") + text + " is not a list"))
          << message;
      EXPECT_NE(message.find("10,14"), std::string::npos) << message;
    }
  }
}

TEST(ParseHostAttention, IsASwitchOrAShare) {
  EXPECT_FALSE(parse_host_attention("auto"));
  const auto is = [](const std::string& text, double least, double most) {
    const std::optional<HostShare> share = parse_host_attention(text);
    return share && share->least == least && share->most == most;
  };
  EXPECT_TRUE(is("off", 0, 0));
  EXPECT_TRUE(is("on", 0, 1));
  EXPECT_TRUE(is("0.25", 0.25, 0.25));
  EXPECT_TRUE(is("1", 1, 1));
  EXPECT_TRUE(is("0", 0, 0));
  for (const char* wrong : {"", "yes", "-0.1", "1.1", "nan", "0.5x", "50%"}) {
    EXPECT_THROW(parse_host_attention(wrong), UsageError) << wrong;
  }
}

}  // namespace
}  // namespace headrace
