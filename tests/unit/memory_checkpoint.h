// A checkpoint made in memory: any configuration, a format per tensor, and a record of what was
// read.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"

namespace headrace::test {

// A llama of 2 layers whose rows are 32 elements long; change what a test needs.
ModelConfig small_llama();

class MemoryCheckpoint : public Checkpoint {
 public:
  struct Options {
    std::function<DType(Role, int layer)> matrix_format = [](Role, int) { return DType::kF16; };
    DType vector_format = DType::kF32;
    bool interleaved = false;
    uint64_t seed = 1;
    // Throws, to stand for a file that cannot be read.
    std::function<void(const TensorInfo&, uint64_t offset)> before_read = {};
  };
  struct Read {
    uint64_t offset, bytes;
  };

  MemoryCheckpoint(const ModelConfig& config, Options options);

  bool qk_rows_interleaved() const override { return options_.interleaved; }
  void read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const override;
  std::string format() const override { return "memory"; }

  // By tensor name, since the last call of forget_reads().
  std::map<std::string, std::vector<Read>> reads() const;
  void forget_reads();

  static std::string tensor_name(Role role, int layer);

 protected:
  std::vector<std::string> names(Role role, int layer) const override {
    return {tensor_name(role, layer)};
  }

 private:
  Options options_;
  std::map<std::string, std::vector<std::byte>> data_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::vector<Read>> reads_;
};

}  // namespace headrace::test
