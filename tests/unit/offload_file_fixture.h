// What the tests of the offload file share.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/io/io_queue.h"
#include "engine/memory/offload_file.h"
#include "tests/unit/memory_checkpoint.h"
#include "tests/unit/model_files.h"

namespace headrace::test {

inline const StageRange kWhole{0, 2, true, true};

// Images of 4.2 MB per layer (f32), so of several blocks and, with a small budget, of several
// chunks whose borders cut panels.
inline ModelConfig wide_llama() {
  ModelConfig config = small_llama();
  config.d_model = config.d_embed = 256;
  config.n_heads = 8;
  config.n_kv_heads = 4;
  config.head_dim = 32;
  config.d_ffn = 1000;
  config.vocab_size = 700;
  return config;
}

inline std::unique_ptr<MemoryCheckpoint> checkpoint_of(const ModelConfig& config,
                                                       MemoryCheckpoint::Options options = {}) {
  return std::make_unique<MemoryCheckpoint>(config, std::move(options));
}

// A directory for offload files, and what is asked of one again and again.
class OffloadFileFixture : public testing::Test {
 protected:
  std::unique_ptr<OffloadFile> open(const Checkpoint& checkpoint,
                                    const StageRange& range = kWhole) {
    said_.clear();
    return OffloadFile::open_or_build({place_, disk_budget_}, checkpoint, range,
                                      weight_layout(checkpoint, range), budget_, threads_,
                                      [this](const std::string& line) { said_ += line + "\n"; });
  }
  // With all that another process would have of its own.
  std::unique_ptr<OffloadFile> open_with(
      const Checkpoint& checkpoint, MemoryBudget& budget, ThreadPool& threads,
      const std::function<void(const std::string&)>& say = [](const std::string&) {}) const {
    return OffloadFile::open_or_build({place_}, checkpoint, kWhole,
                                      weight_layout(checkpoint, kWhole), budget, threads, say);
  }
  std::string path(const Checkpoint& checkpoint, const StageRange& range = kWhole) const {
    return place_ + "/" +
           OffloadHeader(checkpoint, range, weight_layout(checkpoint, range)).file_name();
  }
  bool was_built() const { return said_.find("offload file built in") != std::string::npos; }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    if (!std::filesystem::exists(place_)) return all;
    for (const auto& entry : std::filesystem::directory_iterator(place_))
      all.push_back(entry.path().filename());
    return all;
  }

  // Reads every image through the file, verifies it and compares it with pack_image().
  void expect_images(const OffloadFile& file, const Checkpoint& checkpoint,
                     const StageRange& range = kWhole) {
    const WeightLayout layout = weight_layout(checkpoint, range);
    for (size_t u = 0; u < layout.units.size(); ++u) {
      const WeightUnit& unit = layout.units[u];
      if (unit.image_bytes == 0) continue;
      Buffer read = budget_.allocate(unit.image_bytes, "read"),
             packed = budget_.allocate(unit.image_bytes, "packed");
      read_now(file.file(), file.offset(u), {read.data(), unit.image_bytes});
      file.verify(u, 0, {read.data(), unit.image_bytes});
      pack_image(checkpoint, unit, 0, {packed.data(), unit.image_bytes}, threads_);
      EXPECT_EQ(std::memcmp(read.data(), packed.data(), unit.image_bytes), 0) << unit.name();
    }
  }

  template <typename Error, typename F>
  static void expect_error(const F& action, const std::vector<std::string>& words) {
    try {
      action();
      ADD_FAILURE() << "no error; expected one with " << words.front();
    } catch (const Error& error) {
      for (const std::string& word : words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
            << word << " is not in: " << error.what();
    }
  }

  TempDir directory_;
  std::string place_ = directory_ / "cache/offload";
  uint64_t disk_budget_ = UINT64_MAX;
  MemoryBudget budget_{"host memory", uint64_t{64} << 20};
  ThreadPool threads_{2, 0};
  std::string said_;
};

}  // namespace headrace::test
