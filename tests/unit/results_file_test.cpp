// The results file: what is refused, and what resume keeps.
#include "runtime/results/results_file.h"

#include <fcntl.h>

#include <algorithm>
#include <csignal>
#include <vector>

#include "engine/error.h"
#include "runtime/error.h"
#include "tests/unit/results_file_fixture.h"

namespace headrace {
namespace {

TEST_F(ResultsFileTest, AppendsWholeLinesAtOnce) {
  ResultsFile file = open();
  EXPECT_EQ(file.resumed(), 0);
  file.append(result("a"));
  EXPECT_EQ(ids(), (std::map<std::string, int>{{"a", 1}}));
  file.append(BadLine{"line-2", "invalid_json", "line 2: no"});
  EXPECT_TRUE(content().ends_with("}\n"));
  EXPECT_TRUE(file.has("a", 0) && file.has("line-2", 0) && !file.has("b", 0));
  EXPECT_THROW(file.append(result("a")), std::logic_error);
  file.close();
  EXPECT_EQ(ids().size(), 2u);
  EXPECT_THROW(file.append(result("b")), std::logic_error);
  const Json manifest = Json::parse(read(path_.string() + ".manifest.json"));
  EXPECT_EQ(manifest["model_fingerprint"], "f00");
  EXPECT_FALSE(fs::exists(path_.string() + ".manifest.json.tmp"));
}

TEST_F(ResultsFileTest, ExistingResultsAreNotOverwritten) {
  open().append(result("a"));
  const std::string before = content();
  expect_words(thrown<UsageError>([&] { open(); }), {path_, "--resume", "move"});
  EXPECT_EQ(content(), before);
  write(path_, "");  // an empty file holds nothing
  open().append(result("a"));
  EXPECT_EQ(ids().size(), 1u);
}

TEST_F(ResultsFileTest, PathsThatCannotBeWritten) {
  path_ = directory_ / "no" / "out.jsonl";
  expect_words(thrown<UsageError>([&] { open(); }), {path_, "directory does not exist"});
  path_ = directory_;
  expect_words(thrown<UsageError>([&] { open(); }), {path_, "it is a directory"});
  path_ = "/dev/null";
  expect_words(thrown<UsageError>([&] { open(); }), {path_, "not a regular file", "--output -"});
  path_ = directory_ / "readonly.jsonl";
  write(path_, "");
  fs::permissions(path_, fs::perms::owner_read);
  const std::string text = in_child([&]() -> std::string {
    if (::geteuid() == 0) {
      fs::permissions(directory_, fs::perms::all);
      if (::setresuid(65534, 65534, 65534) != 0) return "setresuid failed";
    }
    return thrown<IoError>([&] { open(); });
  });
  expect_words(text, {path_, "Permission denied", "permissions"});
}

TEST_F(ResultsFileTest, ResumeKeepsWholeLinesForEveryTornOffset) {
  const std::vector<std::string> wanted = {"a", "b", "c"};
  {
    ResultsFile file = open();
    file.append(result("a"));
    file.append(BadLine{"b", "invalid_request", "line 2: no"});
    file.append(result("c"));
  }
  const std::string whole = content();
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    const std::string part = whole.substr(0, cut);
    write(path_, part);
    const auto lines = std::count(part.begin(), part.end(), '\n');
    {
      ResultsFile file = open(/*resume=*/true);
      ASSERT_EQ(file.resumed(), lines) << cut;
      ASSERT_EQ(file.resumed_errors(), lines >= 2 ? 1 : 0) << cut;
      ASSERT_EQ(content(), part.substr(0, part.rfind('\n') + 1)) << cut;
      for (size_t i = 0; i < wanted.size(); ++i) {
        ASSERT_EQ(file.has(wanted[i], 0), static_cast<int64_t>(i) < lines) << cut;
        if (!file.has(wanted[i], 0)) file.append(result(wanted[i]));
      }
    }
    ASSERT_EQ(ids(), (std::map<std::string, int>{{"a", 1}, {"b", 1}, {"c", 1}})) << cut;
  }
}

TEST_F(ResultsFileTest, LastLineThatIsNoRecordIsDropped) {
  open().append(result("a"));
  const std::string whole = content();
  for (const std::string& tail :
       {std::string("{\"custom_id\":\"b\"}\n"), std::string(100, '\0'), std::string("\n"),
        std::string(100, '\0') + "\n", std::string("[[[[\n"), std::string(3 << 20, '[')}) {
    write(path_, whole + tail);
    EXPECT_EQ(open(true).resumed(), 1);
    EXPECT_EQ(content(), whole);
  }
}

TEST_F(ResultsFileTest, DamageInTheMiddleIsReportedNotRepaired) {
  {
    ResultsFile file = open();
    for (const char* id : {"a", "b", "c"}) file.append(result(id));
  }
  const std::string whole = content();
  std::string damaged = whole;
  damaged[whole.find('\n') + 1] = '?';
  for (const std::string& tail : {std::string(), std::string("torn")}) {
    write(path_, damaged + tail);
    expect_words(thrown<IoError>([&] { open(true); }), {path_, "line 2 is not a record"});
    EXPECT_EQ(content(), damaged + tail);
  }
  write(path_, whole + "no record\n" + "torn");
  expect_words(thrown<IoError>([&] { open(true); }), {"line 4 is not a record"});
  write(path_, whole + whole);
  expect_words(thrown<IoError>([&] { open(true); }), {path_, "line 4 repeats"});
}

TEST_F(ResultsFileTest, ResumeWithoutAFileBegins) {
  EXPECT_EQ(open(true).resumed(), 0);
  EXPECT_TRUE(fs::exists(path_.string() + ".manifest.json"));
}

TEST_F(ResultsFileTest, ResumeNeedsTheManifest) {
  open().append(result("a"));
  const fs::path manifest = path_.string() + ".manifest.json";
  write(manifest, "{\"a\":");
  expect_words(thrown<UsageError>([&] { open(true); }), {manifest, "not JSON", "without --resume"});
  write(manifest, std::string(1000000, '['));
  expect_words(thrown<UsageError>([&] { open(true); }), {manifest, "nested"});
  fs::remove(manifest);
  expect_words(thrown<UsageError>([&] { open(true); }), {path_, manifest, "without --resume"});
  EXPECT_EQ(ids().size(), 1u);
}

TEST_F(ResultsFileTest, ResumeWithOtherSettingsIsRefusedFieldByField) {
  open().append(result("a"));
  const Manifest first = manifest_;
  EXPECT_EQ(open(true).resumed(), 1);
  manifest_.model_fingerprint = "f01";
  manifest_.defaults.sampling.temperature = 0.5f;
  manifest_.defaults.sampling.logit_bias = {{5, 1.0f}};
  expect_words(thrown<UsageError>([&] { open(true); }),
               {path_, "model_fingerprint: \"f00\" in the manifest, \"f01\" now",
                "temperature: 0.0 in the manifest, 0.5 now", "logit_bias", "--output"});
  const std::vector<std::function<void(Manifest&)>> changes = {
      [](Manifest& m) { m.model_name = "other"; },
      [](Manifest& m) { m.numerics = "kv=f32"; },
      [](Manifest& m) { m.tokenizer = "0123"; },
      [](Manifest& m) { m.chat_prompt = "user: Hello"; },
      [](Manifest& m) { m.token_ids = true; },
      [](Manifest& m) { m.defaults.max_tokens = 9; },
      [](Manifest& m) { m.defaults.ignore_eos = true; },
      [](Manifest& m) { m.defaults.sampling.top_p = 0.5f; },
      [](Manifest& m) { m.defaults.sampling.top_k = 5; },
      [](Manifest& m) { m.defaults.sampling.min_p = 0.5f; },
      [](Manifest& m) { m.defaults.sampling.repetition_penalty = 1.5f; },
      [](Manifest& m) { m.defaults.sampling.seed = ~uint64_t{0}; },
      [](Manifest& m) { m.defaults.sampling.top_logprobs = 0; }};
  for (const auto& change : changes) {
    manifest_ = first;
    change(manifest_);
    EXPECT_THROW(open(true), UsageError);
  }
  manifest_ = first;
  EXPECT_EQ(open(true).resumed(), 1);
}

TEST_F(ResultsFileTest, ResultsOfOtherRequestsAreRefused) {
  {
    ResultsFile file = open();
    RequestResult made = result("a");
    made.digest = 0xfedcba9876543210;
    file.append(made);
    EXPECT_TRUE(file.has("a", made.digest));
    file.append(BadLine{"b", "invalid_request", "line 2: no", 7});
  }
  ResultsFile file = open(/*resume=*/true);
  EXPECT_TRUE(file.has("a", 0xfedcba9876543210));
  EXPECT_TRUE(file.has("b", 7));
  EXPECT_FALSE(file.has("c", 7));
  expect_words(thrown<UsageError>([&] { file.has("a", 7); }),
               {path_, "custom_id \"a\"", "another request", "--output"});
  expect_words(thrown<UsageError>([&] { file.has("b", 8); }), {"custom_id \"b\""});
}

TEST_F(ResultsFileTest, SecondRunIsRefusedByTheLock) {
  {
    ResultsFile file = open();
    file.append(result("a"));
    for (const bool resume : {false, true}) {
      const std::string text = in_child([&] { return thrown<UsageError>([&] { open(resume); }); });
      expect_words(text, {"another run is writing", path_});
    }
    file.append(result("b"));
  }
  EXPECT_EQ(
      in_child([&]() -> std::string { return open(true).resumed() == 2 ? "" : "not two records"; }),
      "");
}

TEST_F(ResultsFileTest, StandardOutputGetsTheLinesAndNothingElse) {
  path_ = "-";
  const fs::path captured = directory_ / "stdout";
  const std::string text = in_child([&]() -> std::string {
    fs::current_path(directory_);
    const int fd = ::open(captured.c_str(), O_WRONLY | O_CREAT, 0600);
    ::dup2(fd, STDOUT_FILENO);
    (void)!::write(STDOUT_FILENO, "first\n", 6);
    ResultsFile file = open();
    file.append(result("a"));
    file.append(result("b"));
    file.close();
    return "";
  });
  EXPECT_EQ(text, "");
  std::istringstream lines(read(captured));
  std::vector<std::string> all;
  for (std::string line; std::getline(lines, line);) all.push_back(line);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0], "first");
  EXPECT_EQ(Json::parse(all[2])["custom_id"], "b");
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 1);
  expect_words(thrown<UsageError>([&] { open(true); }), {"--resume", "file"});
}

TEST_F(ResultsFileTest, ClosedPipeIsAnError) {
  path_ = "-";
  const std::string text = in_child([&]() -> std::string {
    ::signal(SIGPIPE, SIG_IGN);
    int ends[2];
    if (::pipe(ends) != 0) return "no pipe";
    ::dup2(ends[1], STDOUT_FILENO);
    ::close(ends[0]);
    return thrown<IoError>([&] { open().append(result("a")); });
  });
  expect_words(text, {"standard output", "Broken pipe"});
}

}  // namespace
}  // namespace headrace
