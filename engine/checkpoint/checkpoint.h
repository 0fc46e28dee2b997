// A model on disk, whatever its format: its configuration, its tensors, and reads of byte ranges.
//
// Files come from outside: every length and offset is checked against the file size when the
// checkpoint is opened, shapes are checked against the configuration, and a violation is a
// ModelError that names the file and the place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
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
  // All tensors in file order, also those no role names; without those whose format is not
  // supported (see unusable_).
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<std::string>& files() const { return files_; }
  const std::vector<uint64_t>& file_bytes() const { return file_bytes_; }  // their sizes

  // The tensor of a role (layer is ignored for roles that exist once), or nullptr where the
  // configuration has none (has_role) or the layer is out of range. Every role that the
  // configuration has is there, with the shape of role_shape. For a tied head kHead names the token
  // embedding.
  const TensorInfo* find(Role role, int layer = 0) const;
  // The same; throws ModelError with the names that were tried.
  const TensorInfo& require(Role role, int layer = 0) const;

  // Throws ModelError for an element that is NaN or infinite (first_not_finite).
  [[noreturn]] void refuse_not_finite(const TensorInfo& tensor, int64_t row, int64_t column) const;

  // GGUF files of the llama family store the rows of Q and K (and the elements of their biases) of
  // each head interleaved (0, d/2, 1, d/2+1, ...); whoever loads them must undo it to use Rope's
  // convention.
  virtual bool qk_rows_interleaved() const { return false; }

  // Reads bytes [offset, offset + out.size()) of the tensor. Any thread. Throws IoError, and
  // ModelError for a file that became shorter or a range outside the tensor.
  virtual void read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const = 0;

  // Says that these bytes of the tensor will not be read again soon: the kernel may take them out
  // of its page cache, which else counts against the memory limit of whoever reads. Any thread.
  virtual void drop_cache(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) const;
  // The same for all tensors.
  void drop_all_cache() const;

  // 16 hex digits that identify format, configuration, tensor table and (by samples of 4 KiB per
  // tensor and the file sizes) the contents. The same on every machine.
  // Read once, then kept. Any thread.
  const std::string& fingerprint() const;

  // "GGUF v3", "safetensors", "synthetic".
  virtual std::string format() const = 0;

 protected:
  // Names to try for a role, most usual first.
  virtual std::vector<std::string> names(Role role, int layer) const = 0;
  // Call once `config_` and `tensors_` are final: validates the configuration, builds the name
  // index and checks that every tensor that `config_` implies is there with the right shape.
  // Messages start with `source`, the file or directory.
  void finish(const std::string& source);
  // "model.gguf: tensor \"blk.0.attn_q.weight\"", for messages.
  std::string place_of(const TensorInfo& tensor) const;

  ModelConfig config_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> files_;
  std::vector<uint64_t> file_bytes_;  // size of each of files_
  // Tensors left out of tensors_, with the reason; it becomes the error if a role needs one.
  std::map<std::string, std::string> unusable_;

 private:
  // Position in tensors_ of the tensor of each role, -1 for none: the roles that exist once, then
  // layer by layer all roles.
  std::vector<int> index_;
  std::string source_;
  mutable std::once_flag fingerprint_once_;
  mutable std::string fingerprint_;

  std::string compute_fingerprint() const;
  size_t slot(Role role, int layer) const;
  int locate(Role role, int layer, const std::unordered_map<std::string_view, int>& by_name) const;
  std::string tried(Role role, int layer) const;
};

}  // namespace headrace
