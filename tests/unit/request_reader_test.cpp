// A batch file's lines: breaks, numbers, ids, lines that are too long.
#include "runtime/requests/request_reader.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime/error.h"
#include "runtime/requests/id_set.h"
#include "runtime/requests/request_sizes.h"
#include "tests/unit/child_process.h"

namespace headrace {
namespace {

using Item = std::variant<Request, BadLine>;

class Reader : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::path(::testing::TempDir()) /
            ("headrace_reader_" + std::to_string(::getpid()) + ".jsonl");
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::vector<Item> read(const std::string& content) {
    std::ofstream(path_, std::ios::binary) << content;
    RequestReader reader(path_, {});
    std::vector<Item> items;
    lines_.clear();
    while (auto item = reader.next()) {
      items.push_back(*item);
      lines_.push_back(reader.line());
    }
    EXPECT_EQ(reader.next(), std::nullopt);
    return items;
  }
  static std::string id(const Item& item) {
    return std::visit([](const auto& i) { return i.custom_id; }, item);
  }
  static std::string code(const Item& item) {
    const auto* line = std::get_if<BadLine>(&item);
    return line == nullptr ? "" : line->code;
  }

  std::string path_;
  std::vector<int64_t> lines_;
};

TEST_F(Reader, ByteOrderMarkCrLfBlankLinesAndNoLastBreak) {
  const auto items =
      read("\xef\xbb\xbf{\"prompt\":\"a\"}\r\n\r\n  \n{\"prompt\":\"b\"}\n\n{\"prompt\":\"c\"}");
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(lines_, (std::vector<int64_t>{1, 4, 6}));
  EXPECT_EQ(std::get<std::string>(std::get<Request>(items[0]).prompt), "a");
  EXPECT_EQ(id(items[1]), "line-4");
  EXPECT_EQ(std::get<std::string>(std::get<Request>(items[2]).prompt), "c");
  EXPECT_TRUE(read("").empty());
  EXPECT_TRUE(read("\xef\xbb\xbf\n").empty());
}

TEST_F(Reader, EveryItemHasItsOwnId) {
  const auto items = read(R"({"custom_id":"a","prompt":"1"})"
                          "\n"
                          R"({"custom_id":"line-4","prompt":"2"})"
                          "\n"
                          R"({"custom_id":"a","prompt":"3"})"
                          "\n"  // duplicate
                          R"({"prompt":"4"})"
                          "\n"  // its default id is taken
                          R"({"custom_id":"a","prompt":5})"
                          "\n"  // bad and duplicate
                          "nonsense\n"
                          R"({"custom_id":"line-6","prompt":"7"})"
                          "\n"  // taken by the record of line 6
                          R"({"custom_id":"b","prompt":"8"})"
                          "\n");
  ASSERT_EQ(items.size(), 8u);
  const std::vector<std::string> ids = {"a",      "line-4", "line-3", "line-4-2",
                                        "line-5", "line-6", "line-7", "b"};
  const std::vector<std::string> codes = {"",
                                          "",
                                          "duplicate_custom_id",
                                          "duplicate_custom_id",
                                          "invalid_request",
                                          "invalid_json",
                                          "duplicate_custom_id",
                                          ""};
  for (size_t i = 0; i < items.size(); ++i) {
    EXPECT_EQ(id(items[i]), ids[i]);
    EXPECT_EQ(code(items[i]), codes[i]);
  }
  EXPECT_NE(std::get<BadLine>(items[2]).message.find("line 3: the \"custom_id\" \"a\""),
            std::string::npos);
}

TEST_F(Reader, LineThatIsTooLongIsPassedOver) {
  const std::string head = R"({"prompt":")";
  const std::string longest = head + std::string(kMaxLineBytes - head.size() - 2, 'x') + "\"}";
  ASSERT_EQ(longest.size(), kMaxLineBytes);
  const auto items = read(longest + "\n" + longest + " \n" + R"({"prompt":"c"})");
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(code(items[0]), "");
  EXPECT_EQ(code(items[1]), "line_too_long");
  EXPECT_EQ(id(items[1]), "line-2");
  EXPECT_EQ(code(items[2]), "");
  EXPECT_EQ(lines_, (std::vector<int64_t>{1, 2, 3}));
}

TEST_F(Reader, ALineOfAHundredMegabytesTakesLittleMemory) {
  constexpr int64_t kBytes = 100'000'000;
  const std::string text = test::in_child([&]() -> std::string {
    const int64_t before = test::peak_bytes();
    std::ofstream(path_).close();
    std::filesystem::resize_file(path_, kBytes);
    std::ofstream(path_, std::ios::app) << "\n{\"prompt\":\"b\"}\n";
    RequestReader reader(path_, {});
    if (code(*reader.next()) != "line_too_long") return "it was taken";
    if (id(*reader.next()) != "line-2") return "the next line was lost";
    const int64_t more = test::peak_bytes() - before;
    return more < 64 << 20 ? "" : "it took " + std::to_string(more) + " bytes";
  });
  EXPECT_EQ(text, "");
}

TEST_F(Reader, InputThatCannotBeOpened) {
  EXPECT_THROW(RequestReader("/nonexistent/in.jsonl", {}), UsageError);
  EXPECT_THROW(RequestReader(::testing::TempDir(), {}), UsageError);
}

// Half a line is no input yet: whoever took it for one would wait for the other half.
TEST_F(Reader, ReadyOnceALineIsWhole) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const auto write = [&](const std::string& text) {
    ASSERT_EQ(::write(ends[1], text.data(), text.size()), std::ssize(text));
  };
  RequestReader reader("/proc/self/fd/" + std::to_string(ends[0]), {});
  EXPECT_FALSE(reader.ready(0));
  const std::string prompt(1000, 'x');
  write(R"({"custom_id":"a","prompt":")" + prompt);
  EXPECT_FALSE(reader.ready(0));
  write(prompt + "\"}");
  EXPECT_FALSE(reader.ready(10));
  write("\n{\"custom_id\":\"b\",\"pro");
  EXPECT_TRUE(reader.ready(0));
  const auto first = reader.next();
  EXPECT_EQ(std::get<std::string>(std::get<Request>(*first).prompt), prompt + prompt);
  EXPECT_FALSE(reader.ready(0));
  write("mpt\":\"y\"}");
  EXPECT_FALSE(reader.ready(0));
  ::close(ends[1]);
  EXPECT_TRUE(reader.ready(0));  // the end
  EXPECT_EQ(id(*reader.next()), "b");
  EXPECT_TRUE(reader.ready(0));
  EXPECT_FALSE(reader.next());
  ::close(ends[0]);
}

TEST_F(Reader, DigestsTellRequestsApart) {
  const auto digest = [this](const std::string& line) {
    return std::visit([](const auto& item) { return item.digest; }, read(line + "\n").front());
  };
  const uint64_t one = digest(R"({"custom_id": "a", "prompt": "x \" y"})");
  EXPECT_NE(one, 0u);
  EXPECT_EQ(one, digest(R"(  {"custom_id":"a",	"prompt":"x \" y"}  )"));
  EXPECT_NE(one, digest(R"({"custom_id": "a", "prompt": "x \"  y"})"));
  EXPECT_NE(one, digest(R"({"custom_id": "a", "prompt": "x \" y", "n": 2})"));
  EXPECT_NE(digest("no request"), digest("another"));
  EXPECT_EQ(line_digest(R"({"a": "b\\"  })"), line_digest(R"({"a":"b\\"})"));
  EXPECT_EQ(line_digest("{}"), 0x1349cde127705c16u);  // it stands in files
}

TEST_F(Reader, SizesOfAWholeInputAndOfALongOne) {
  const std::string ids = R"({"prompt":[1,2,3],"max_tokens":5,"n":2})"
                          "\n";
  const std::string text = R"({"prompt":")" + std::string(300, 'x') +
                           R"(","max_tokens":9})"
                           "\n";
  std::ofstream(path_) << ids << text << "no request\n";
  const RequestSizes few = sizes_of_requests(path_, {});
  EXPECT_EQ(few.sequences, 3);
  EXPECT_EQ(few.longest, 300 + 9 + 1);
  EXPECT_EQ(few.usual, 300 / 3 + 9 + 1);
  EXPECT_EQ(few.prompt, 300 / 3 + 1);
  EXPECT_FALSE(few.sampled);
  RequestDefaults warm;
  warm.sampling.temperature = 1.0f;
  EXPECT_TRUE(sizes_of_requests(path_, warm).sampled);
  std::ofstream many(path_);
  for (int i = 0; i < 1000; ++i) many << ids;
  for (int i = 0; i < 1000; ++i) many << text;
  many.close();
  const RequestSizes all = sizes_of_requests(path_, {});
  EXPECT_EQ(all.sequences, 3000);
  EXPECT_EQ(all.longest, 300 + 9 + 1);  // wherever it stands
  EXPECT_EQ(all.usual, 8);              // of the first thousand
  EXPECT_EQ(all.prompt, 3);
  EXPECT_EQ(sizes_of_requests("-", {}).sequences, 0);
}

TEST_F(Reader, SizesOfAnswersWithLogprobs) {
  std::ofstream(path_) << R"({"prompt":[1],"max_tokens":100})"
                          "\n";
  const RequestSizes bare = sizes_of_requests(path_, {});
  std::ofstream(path_, std::ios::app) << R"({"prompt":[1],"max_tokens":50,"logprobs":5})"
                                         "\n";
  const RequestSizes both = sizes_of_requests(path_, {});
  EXPECT_EQ(bare.logprobs, 0);
  EXPECT_GE(both.logprobs, 50 * (8 + 5 * 8 + 24));
  EXPECT_EQ(bare.lines, 1);
  EXPECT_EQ(both.lines, 2);
  EXPECT_EQ(sizes_of_requests("-", {}).lines, -1);
}

// Whoever looks at a pipe in advance takes requests from the run.
TEST_F(Reader, NothingIsReadAheadOfWhatComesOnce) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_TRUE(comes_once(path_));
  EXPECT_EQ(sizes_of_requests(path_, {}).usual, 0);  // would wait for a writer
  EXPECT_TRUE(comes_once("-"));
  EXPECT_TRUE(comes_once("/dev/null"));
  std::filesystem::remove(path_);
  EXPECT_FALSE(comes_once(path_));
  std::ofstream(path_) << "\n";
  EXPECT_FALSE(comes_once(path_));
}

TEST(IdSet, HoldsWhatWasPutIn) {
  IdSet set;
  EXPECT_FALSE(set.contains("x"));
  for (int i = 0; i < 100000; ++i) EXPECT_TRUE(set.insert("id-" + std::to_string(i)));
  for (int i = 0; i < 100000; ++i) EXPECT_FALSE(set.insert("id-" + std::to_string(i)));
  EXPECT_EQ(set.size(), 100000u);
  EXPECT_FALSE(set.contains("id-100000"));
  EXPECT_TRUE(set.insert_hash(0));
  EXPECT_FALSE(set.insert_hash(0));
  // The hash stands in results files: it must never change.
  EXPECT_EQ(custom_id_hash(""), 0x2d06800538d394c2u);
}

}  // namespace
}  // namespace headrace
