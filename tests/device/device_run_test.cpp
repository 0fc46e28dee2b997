// Whole runs, from options to the results file, of ranks that have devices and wires between them:
// the same results as one CPU's, whatever becomes of the wires.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "comm/device_wire.h"
#include "comm/error.h"
#include "comm/local_transport.h"
#include "engine/error.h"
#include "runtime/device_choice.h"
#include "runtime/error.h"
#include "runtime/run.h"
#include "tests/device/fake_device.h"
#include "tests/device/fake_module.h"
#include "tests/device/fake_wires.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using nlohmann::json;

// What the module gives.
int devices = 3;
int capability = 9;
int64_t lost_after = INT64_MAX;  // waits of the host, every device
test::FakeFaults faults;
test::FakeNet* net = nullptr;
std::atomic<uint64_t> seed = 1;

class RunModule final : public test::FakeModule {
 public:
  int count() override { return devices; }
  DeviceFacts facts(int device) override {
    const std::string bus = "bus " + std::to_string(device);
    return {"fake", bus, capability, 0, uint64_t{8} << 30, uint64_t{8} << 30};
  }
  std::unique_ptr<Device> open(int) override {
    auto device = std::make_unique<test::FakeDevice>(++seed);
    device->refuse_unpinned();
    device->lose_after(lost_after);
    return device;
  }
};

}  // namespace
}  // namespace headrace

extern "C" headrace::DeviceModule* headrace_test_open_module() { return new headrace::RunModule; }
extern "C" headrace::DeviceWires* headrace_test_open_wires() {
  return new headrace::test::FakeWires(*headrace::net, ++headrace::seed, headrace::faults);
}

namespace headrace {
namespace {

class DeviceRun : public testing::Test {
 protected:
  DeviceRun() {
    devices = 3;
    capability = 9;
    lost_after = INT64_MAX;
    faults = {};
    net = &net_;
    std::string lines;
    for (int i = 0; i < 12; ++i) {
      json prompt = json::array();
      for (int t = 0; t <= i * 7 % 20; ++t) prompt.push_back((i * 31 + t * 17) % 200 + 1);
      lines += json{{"custom_id", std::to_string(i)},
                    {"prompt", prompt},
                    {"max_tokens", 6 + i},
                    {"logprobs", 2},
                    {"ignore_eos", true},
                    {"temperature", i % 2},
                    {"seed", i}}
                   .dump() +
               "\n";
    }
    test::write_file(folder_ / "in.jsonl", lines);
  }

  GenerateOptions options(const std::string& device, const std::string& link) const {
    GenerateOptions options;
    options.model = "synthetic:tiny-llama:f32";
    options.input = folder_ / "in.jsonl";
    options.output = folder_ / "out.jsonl";
    options.token_ids = true;
    options.max_batch = 4;
    options.prefill_chunk = 8;
    options.threads = 1;
    options.host_memory = uint64_t{512} << 20;
    options.device = device;
    options.device_memory = uint64_t{2} << 30;
    options.cuda_module = RUN_MODULE;
    options.math = "f32";
    options.link = link;
    options.peer_timeout = 1;
    options.progress = ProgressStyle::kNone;
    return options;
  }

  // What each rank threw.
  std::vector<std::exception_ptr> run(const GenerateOptions& options, int ranks) {
    return run(std::vector(static_cast<size_t>(ranks), options));
  }
  std::vector<std::exception_ptr> run(const std::vector<GenerateOptions>& options) {
    const auto transports =
        LocalTransport::create(static_cast<int>(options.size()), std::chrono::seconds(5));
    const std::atomic<bool> interrupted = false;
    std::vector<std::exception_ptr> thrown(options.size());
    std::vector<std::thread> threads;
    for (size_t r = 0; r < thrown.size(); ++r) {
      threads.emplace_back([&, r] {
        try {
          run_rank(options[r], {*transports[r], *transports[r]}, interrupted);
        } catch (...) {
          thrown[r] = std::current_exception();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(net_.open_ends(), 0);
    return thrown;
  }

  static std::string text_of(const std::exception_ptr& thrown) {
    if (!thrown) return "";
    try {
      std::rethrow_exception(thrown);
    } catch (const PeerLost& e) {
      return std::string("PeerLost ") + e.what();
    } catch (const DeviceLost& e) {
      return std::string("DeviceLost ") + e.what();
    } catch (const DoesNotFit& e) {
      return std::string("DoesNotFit ") + e.what();
    } catch (const ResourceMissing& e) {
      return std::string("ResourceMissing ") + e.what();
    } catch (const std::exception& e) {
      return std::string("other ") + e.what();
    }
  }

  // Choices by request.
  std::map<std::string, json> results() const {
    std::map<std::string, json> all;
    std::istringstream lines(test::read_file(folder_ / "out.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const json record = json::parse(line);
      EXPECT_TRUE(
          all.emplace(record.at("custom_id"), record.at("response").at("body").at("choices"))
              .second);
    }
    return all;
  }

  void forget_results() const {
    for (const char* name : {"out.jsonl", "out.jsonl.manifest.json"}) {
      std::filesystem::remove(folder_ / name);
    }
  }

  std::map<std::string, json> good(const GenerateOptions& options, int ranks) {
    forget_results();
    for (const auto& thrown : run(options, ranks)) EXPECT_EQ(text_of(thrown), "");
    return results();
  }
  std::map<std::string, json> good(const std::vector<GenerateOptions>& options) {
    forget_results();
    for (const auto& thrown : run(options)) EXPECT_EQ(text_of(thrown), "");
    return results();
  }

  test::FakeNet net_;
  const test::TempDir folder_;
};

TEST_F(DeviceRun, GivesACpusResultsByWhateverLink) {
  const auto expected = good(options("cpu", "auto"), 1);
  ASSERT_EQ(expected.size(), 12U);
  EXPECT_EQ(good(options("cuda", "auto"), 1), expected);
  EXPECT_EQ(good(options("cuda", "mpi"), 2), expected);
  EXPECT_EQ(net_.closed_ends(), 0);
  EXPECT_EQ(good(options("cuda", "auto"), 2), expected);
  EXPECT_EQ(net_.closed_ends(), 2);
  EXPECT_EQ(good(options("cuda", "nccl"), 2), expected);
  EXPECT_EQ(net_.closed_ends(), 4);
  EXPECT_EQ(good(options("cuda", "nccl"), 3), expected);
  EXPECT_EQ(net_.closed_ends(), 8);
  EXPECT_EQ(net_.aborted_transfers(), 0);
}

TEST_F(DeviceRun, RanksThatShareADeviceHaveNoWireUnlessItIsAskedFor) {
  devices = 1;
  const auto expected = good(options("cuda", "auto"), 2);
  EXPECT_EQ(net_.closed_ends(), 0);
  EXPECT_EQ(good(options("cuda", "nccl"), 2), expected);
  EXPECT_EQ(net_.closed_ends(), 2);
}

TEST_F(DeviceRun, GivesACpusResultsWithCpusBesideGpus) {
  const GenerateOptions cpu = options("cpu", "auto"), gpu = options("auto", "auto");
  const auto expected = good(cpu, 1);
  EXPECT_EQ(good({gpu, cpu}), expected);
  EXPECT_EQ(good({cpu, gpu}), expected);
  EXPECT_EQ(good({gpu, cpu, gpu}), expected);
  EXPECT_EQ(net_.closed_ends(), 0);
  EXPECT_EQ(good({cpu, gpu, gpu}), expected);
  EXPECT_EQ(net_.closed_ends(), 2);
  // Each has its own room.
  std::vector<GenerateOptions> narrow{gpu, cpu, gpu};
  narrow[1].host_memory = uint64_t{40} << 20;
  narrow[2].device_memory = uint64_t{720} << 20;
  narrow[2].device_kv = 0;
  EXPECT_EQ(good(narrow), expected);
}

TEST_F(DeviceRun, GpusAreSharedByTheRanksThatHaveThem) {
  const auto refusal = [&](std::vector<GenerateOptions> options, const std::string& sum) {
    forget_results();
    for (const auto& thrown : run(options)) {
      const std::string text = text_of(thrown);
      EXPECT_EQ(text.find("DoesNotFit --device-memory is more than the GPU (fake) has free"), 0U)
          << text;
      EXPECT_NE(text.find(sum), std::string::npos) << text;
      EXPECT_NE(text.find("free         8.0 GiB of 8.0 GiB"), std::string::npos) << text;
    }
  };
  GenerateOptions all = options("cuda", "auto"), more = all, first = options("cuda:0", "auto");
  more.device_memory = uint64_t{200} << 30;
  refusal({more}, "200.0 GiB");
  all.device_memory = first.device_memory = uint64_t{5} << 30;
  EXPECT_EQ(good({all, all, all}).size(), 12U);  // one each
  refusal({first, first}, "with the other ranks that share it 10.0 GiB");
  devices = 1;
  refusal({all, all}, "with the other ranks that share it 10.0 GiB");
  EXPECT_EQ(good({all, options("cpu", "auto")}).size(), 12U);
  all.device_memory = 0;
  EXPECT_EQ(good({all, all, options("cpu", "auto")}).size(), 12U);
}

TEST(DeviceBudget, WhatNobodyWasGivenIsSharedByTheOthers) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  DeviceFacts facts;
  facts.memory_total = 64 * kGiB;  // 1 GiB of which is the margin
  facts.memory_free = 61 * kGiB;
  EXPECT_EQ(device_budget(facts, 0, {0, 1}), 60 * kGiB);
  EXPECT_EQ(device_budget(facts, 0, {0, 4}), 15 * kGiB);
  EXPECT_EQ(device_budget(facts, 0, {20 * kGiB, 2}), 20 * kGiB);
  EXPECT_EQ(device_budget(facts, 0, {60 * kGiB, 1}), 0U);
  EXPECT_EQ(device_budget(facts, 20 * kGiB, {20 * kGiB, 2}), 20 * kGiB);
  EXPECT_EQ(device_budget(facts, 61 * kGiB, {61 * kGiB, 0}), 61 * kGiB);
  EXPECT_THROW(device_budget(facts, 31 * kGiB, {62 * kGiB, 0}), DoesNotFit);
}

TEST_F(DeviceRun, AGpuThatIsLostEndsTheRunWhichCanBeResumed) {
  const auto expected = good(options("cpu", "auto"), 1);
  for (const int ranks : {1, 2}) {
    for (const int64_t waits : {40, 120}) {
      SCOPED_TRACE(waits);
      forget_results();
      lost_after = waits;
      GenerateOptions resumed = options("cuda", "mpi");
      for (const auto& thrown : run(resumed, ranks)) {
        const std::string text = text_of(thrown);
        EXPECT_TRUE(text.starts_with("DeviceLost") || text.starts_with("PeerLost")) << text;
        EXPECT_TRUE(ranks > 1 || text.starts_with("DeviceLost")) << text;
      }
      EXPECT_LT(results().size(), expected.size());
      lost_after = INT64_MAX;
      resumed.resume = true;
      for (const auto& thrown : run(resumed, ranks)) EXPECT_EQ(text_of(thrown), "");
      EXPECT_EQ(results(), expected);
    }
  }
}

TEST_F(DeviceRun, WiresThatCannotBeConnectedAreDoneWithoutOrRefused) {
  const auto expected = good(options("cuda", "mpi"), 2);
  faults.cannot_connect = true;
  EXPECT_EQ(good(options("cuda", "auto"), 2), expected);
  EXPECT_EQ(net_.closed_ends(), 0);
  forget_results();
  for (const auto& thrown : run(options("cuda", "nccl"), 2)) {
    const std::string text = text_of(thrown);
    EXPECT_EQ(text.find("ResourceMissing stage 1 cannot send"), 0U) << text;
    EXPECT_NE(text.find("fake: no interface"), std::string::npos) << text;
  }
}

TEST_F(DeviceRun, AWireThatFailsEndsTheRunWhichCanBeResumed) {
  const auto expected = good(options("cpu", "auto"), 1);
  for (const bool stops : {false, true}) {
    SCOPED_TRACE(stops);
    forget_results();
    (stops ? faults.stops_after : faults.fails_after) = 25;
    GenerateOptions resumed = options("cuda", "nccl");
    for (const auto& thrown : run(resumed, 2)) {
      EXPECT_EQ(text_of(thrown).find("PeerLost"), 0U) << text_of(thrown);
    }
    EXPECT_LT(results().size(), expected.size());
    faults = {};
    resumed.resume = true;
    for (const auto& thrown : run(resumed, 2)) EXPECT_EQ(text_of(thrown), "");
    EXPECT_EQ(results(), expected);
  }
}

TEST_F(DeviceRun, GivesACpusResultsWithTheHelpOfOne) {
  const auto expected = good(options("cpu", "auto"), 1);
  GenerateOptions helped = options("cuda", "auto");
  helped.device_kv = 0;
  for (const HostShare share : {HostShare{1, 1}, HostShare{0.5, 0.5}, HostShare{0, 1}}) {
    helped.host_share = share;
    EXPECT_EQ(good(helped, 1), expected);
    EXPECT_EQ(good(helped, 2), expected);
  }
  helped.host_share.reset();  // as it likes
  EXPECT_EQ(good(helped, 1), expected);
}

TEST_F(DeviceRun, GivesACpusResultsWithKvPagesOnDisk) {
  const auto expected = good(options("cpu", "auto"), 1);
  GenerateOptions on_disk = options("cuda", "auto");
  on_disk.disk = folder_ / "offload";
  on_disk.disk_budget = uint64_t{1} << 30;
  on_disk.device_kv = 0;
  on_disk.kv_memory = 200 << 10;  // of the second of two ranks, the pages have room on the host
  on_disk.report = folder_ / "report.json";
  for (const int ranks : {1, 2}) {
    EXPECT_EQ(good(on_disk, ranks), expected);
    const json report = json::parse(test::read_file(folder_ / "report.json"));
    const json& moved = report.at("stages").at(0).at("moved");
    EXPECT_GT(moved.at("kv_in").at("bytes"), 0);
    EXPECT_GT(moved.at("kv_out").at("bytes"), 0);
  }
}

// Where all pages are on the devices; elsewhere every prompt is computed.
TEST_F(DeviceRun, GivesACpusResultsWherePrefixesAreShared) {
  std::string lines;
  for (int i = 0; i < 9; ++i) {
    json prompt = json::array();
    for (int t = 0; t < 50 + i; ++t) prompt.push_back(t < 45 ? t * 3 % 200 + 1 : i + 100);
    lines += json{{"custom_id", std::to_string(i)},
                  {"prompt", prompt},
                  {"max_tokens", 5 + i},
                  {"n", 1 + i % 3},
                  {"repetition_penalty", i % 2 ? 1.5 : 1.0},
                  {"temperature", 1},
                  {"logprobs", 1},
                  {"ignore_eos", true}}
                 .dump() +
             "\n";
  }
  test::write_file(folder_ / "in.jsonl", lines);
  GenerateOptions apart = options("cpu", "auto"), together = options("cuda", "auto");
  apart.share_prefixes = false;
  const auto expected = good(apart, 1);
  ASSERT_EQ(expected.size(), 9U);
  together.report = folder_ / "report.json";
  const auto shared = [&] {
    const json report = json::parse(test::read_file(folder_ / "report.json"));
    const json& tokens = report.at("tokens");
    const json& computed = report.at("stages").at(0).at("prefill_rows");
    EXPECT_EQ(tokens.at("prompt").get<int>(), tokens.at("shared").get<int>() + computed.get<int>());
    return tokens.at("shared").get<int>();
  };
  for (const int ranks : {1, 2}) {
    EXPECT_EQ(good(together, ranks), expected);
    EXPECT_GE(shared(), 17 * 32);
  }
  together.device_kv = 0;
  EXPECT_EQ(good(together, 2), expected);
  EXPECT_EQ(shared(), 0);
}

// Where bits depend on what the CPU attends to it is part of the run's arithmetic.
TEST_F(DeviceRun, AResumeWithOtherArithmeticIsRefused) {
  GenerateOptions helped = options("cuda", "auto"), alone = helped;
  helped.device_kv = alone.device_kv = 0;
  helped.math = alone.math = "f16";
  helped.host_share = {1, 1};
  const auto numerics = [&] {
    return json::parse(test::read_file(folder_ / "out.jsonl.manifest.json"))
        .at("numerics")
        .get<std::string>();
  };
  const auto resumed = [&](GenerateOptions options) {
    options.resume = true;
    return text_of(run(options, 1).front());
  };
  good(alone, 1);
  EXPECT_NE(numerics().find("math=f16 on fake (fake products) wire"), std::string::npos)
      << numerics();
  EXPECT_NE(resumed(helped).find("with host attention"), std::string::npos) << resumed(helped);
  EXPECT_EQ(resumed(alone), "");
  const auto results = good(helped, 1);
  EXPECT_EQ(results.size(), 12U);
  EXPECT_NE(numerics().find("math=f16 on fake (fake products) with host attention"),
            std::string::npos);
  EXPECT_NE(resumed(alone), "");
  helped.host_share = {0, 1};  // how much is not
  EXPECT_EQ(resumed(helped), "");
  // With float32 nothing of it is.
  alone.math = helped.math = "f32";
  good(helped, 1);
  EXPECT_EQ(resumed(alone), "");
}

// Which layers are computed in what is a part of it, too.
TEST_F(DeviceRun, AResumeWithOtherLayersOnAGpuIsRefused) {
  std::vector<GenerateOptions> ranks = {options("cuda", "auto"), options("cpu", "auto")};
  const auto with_split = [&](std::vector<int> split, bool resume) {
    for (GenerateOptions& rank : ranks) {
      rank.math = "f16";
      rank.split = split;
      rank.resume = resume;
    }
    return ranks;
  };
  ASSERT_EQ(good(with_split({1, 2}, false)).size(), 12U);
  EXPECT_EQ(text_of(run(with_split({1, 2}, true)).front()), "");
  const std::string refused = text_of(run(with_split({2, 1}, true)).front());
  EXPECT_NE(refused.find("in layers 0-1, f32 in layers 2-2"), std::string::npos) << refused;
  // On CPUs layers may go anywhere.
  for (GenerateOptions& rank : ranks) rank.device = "cpu";
  ASSERT_EQ(good(with_split({1, 2}, false)).size(), 12U);
  EXPECT_EQ(text_of(run(with_split({2, 1}, true)).front()), "");
}

TEST_F(DeviceRun, AGpuThatIsTooOldIsLeftAlone) {
  const auto expected = good(options("cpu", "auto"), 1);
  capability = 7;
  EXPECT_EQ(good(options("auto", "auto"), 1), expected);
  forget_results();
  const std::string text = text_of(run(options("cuda", "auto"), 1).front());
  EXPECT_EQ(text.find("ResourceMissing GPU 0 (fake) has compute capability 7.0"), 0U) << text;
  EXPECT_NE(text.find("--device cpu"), std::string::npos) << text;
}

TEST_F(DeviceRun, IntegersAreForCpus) {
  GenerateOptions floats = options("cpu", "auto");
  floats.model = "synthetic:tiny-llama:q8";
  GenerateOptions integers = floats;
  integers.math = "int8";
  const auto in_floats = good(floats, 1);
  const auto expected = good(integers, 1);
  EXPECT_NE(in_floats, expected);
  // By itself a rank leaves the GPU alone.
  integers.device = "auto";
  EXPECT_EQ(good(integers, 2), expected);
  const std::string manifest = test::read_file(folder_ / "out.jsonl.manifest.json");
  EXPECT_NE(manifest.find("math=int8 wire"), std::string::npos) << manifest;

  floats.resume = integers.resume = true;
  EXPECT_EQ(text_of(run(integers, 1).front()), "");
  EXPECT_NE(text_of(run(floats, 1).front()).find("math=int8"), std::string::npos);
  forget_results();
  for (const char* device : {"cuda", "cuda:0"}) {
    integers.device = device;
    for (const auto& thrown : run(integers, 2)) {
      EXPECT_THROW(std::rethrow_exception(thrown), UsageError);
      EXPECT_NE(text_of(thrown).find("--math int8"), std::string::npos) << text_of(thrown);
    }
  }
}

}  // namespace
}  // namespace headrace
