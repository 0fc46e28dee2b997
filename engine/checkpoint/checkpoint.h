// A model on disk, whatever its format: its configuration, its tensors, and reads of byte ranges.
//
// Files come from outside: every length and offset is checked against the file size when the
// checkpoint is opened, shapes are checked against the configuration, and a violation is a
// ModelError that names the file and the place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/dtype.h"
#include "engine/model/config.h"

namespace headrace {

struct TensorInfo {
  std::string name;  // as the file spells it
  DType dtype = DType::kF32;
  int64_t rows = 1;  // outermost first, row-major; a vector has one row
  int64_t cols = 0;
  int file = 0;         // index into Checkpoint::files()
  uint64_t offset = 0;  // bytes from the start of that file
  uint64_t bytes = 0;
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // `model` is a Hugging Face directory, a GGUF file, or "synthetic:<shape>[:<dtype>]".
  // Reads headers and configuration only. Throws ModelError, IoError.
  static std::unique_ptr<Checkpoint> open(const std::string& model);

  const ModelConfig& config() const { return config_; }
  // All tensors in file order, also those no role names.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<std::string>& files() const { return files_; }

  // The tensor of a role (layer is ignored for roles that exist once), or nullptr.
  const TensorInfo* find(Role role, int layer = 0) const;
  // The same; throws ModelError with the names that were tried.
  const TensorInfo& require(Role role, int layer = 0) const;

  // GGUF files of the llama family store the rows of Q and K of each head interleaved
  // (0, d/2, 1, d/2+1, ...); whoever loads them must undo it to use Rope's convention.
  virtual bool qk_rows_interleaved() const { return false; }

  // Reads bytes [offset, offset + out.size()) of the tensor. Any thread. Throws IoError, ModelError.
  virtual void read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const = 0;

  // 16 hex digits that identify format, configuration, tensor table and (by samples of 4 KiB per
  // tensor and the file sizes) the contents. The same on every machine.
  std::string fingerprint() const;

  // "GGUF v3", "safetensors", "synthetic".
  virtual std::string format() const = 0;

 protected:
  // Names to try for a role, most usual first.
  virtual std::vector<std::string> names(Role role, int layer) const = 0;
  // Call once `config_` and `tensors_` are final: builds the name index and checks every tensor a
  // role names against the shape that `config_` implies.
  void finish();

  ModelConfig config_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> files_;

 private:
  struct Index;
  std::shared_ptr<const Index> index_;
};

}  // namespace headrace
