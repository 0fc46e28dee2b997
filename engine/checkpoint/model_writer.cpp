#include "engine/checkpoint/model_writer.h"

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "engine/checkpoint/staged_output.h"

namespace headrace {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kSliceBytes = 1 << 20;

// A tensor in pieces that must stay together: rows, or the elements of a vector.
struct Pieces {
  uint64_t count, bytes;

  explicit Pieces(const TensorInfo& tensor)
      : count(static_cast<uint64_t>(tensor.rows > 1 ? tensor.rows : tensor.cols)),
        bytes(tensor.bytes / count) {}
};

// Consecutive pieces of a tensor: what a thread writes at once.
struct Slice {
  size_t file;
  const PlannedTensor* tensor;
  uint64_t first, count;
};

std::vector<Slice> slices_of(const PlannedModel& plan) {
  std::vector<Slice> slices;
  for (size_t f = 0; f < plan.files.size(); ++f) {
    for (const PlannedTensor& planned : plan.files[f].tensors) {
      const Pieces pieces(*planned.tensor);
      const uint64_t at_once = std::max<uint64_t>(1, kSliceBytes / pieces.bytes);
      for (uint64_t first = 0; first < pieces.count; first += at_once) {
        slices.push_back({f, &planned, first, std::min(at_once, pieces.count - first)});
      }
    }
  }
  return slices;
}

// Which row of the half-split order is at `position` of the interleaved one.
uint64_t half_split_row(uint64_t position, uint64_t head) {
  const uint64_t within = position % head;
  return position - within + within % 2 * (head / 2) + within / 2;
}

void fill(const Checkpoint& source, const Slice& slice, std::vector<std::byte>& bytes) {
  const TensorInfo& tensor = *slice.tensor->tensor;
  const Pieces pieces(tensor);
  bytes.resize(slice.count * pieces.bytes);
  const auto head = static_cast<uint64_t>(slice.tensor->interleaved_head);
  if (head == 0) return source.read(tensor, slice.first * pieces.bytes, bytes);
  for (uint64_t i = 0; i < slice.count; ++i) {
    source.read(tensor, half_split_row(slice.first + i, head) * pieces.bytes,
                std::span(bytes).subspan(i * pieces.bytes, pieces.bytes));
  }
}

}  // namespace

uint64_t PlannedModel::bytes() const {
  uint64_t sum = 0;
  for (const PlannedFile& file : files) sum += file.bytes;
  return sum;
}

std::string in_the_way(const std::string& out, bool is_directory, bool replace) {
  std::error_code error;
  const fs::file_status status = fs::status(out, error);
  if (!fs::exists(status)) return "";
  const bool directory_there = fs::is_directory(status);
  if (is_directory && directory_there && fs::is_empty(out, error)) return "";
  if (!replace) return out + " is there already; give --force to replace it, or another name";
  if (is_directory != directory_there) {
    return out + " is there already, as a " + (directory_there ? "directory" : "file") +
           "; remove it, or give another name";
  }
  if (!is_directory) return "";
  for (const fs::directory_entry& entry : fs::directory_iterator(out, error)) {
    const std::string name = entry.path().filename().string();
    if (!StagedOutput::is_model_file(name) || !entry.is_regular_file(error)) {
      return out + " holds " + name + ", which headrace did not write; move it away, or give " +
             "another name";
    }
  }
  return error ? out + " cannot be read: " + error.message() : "";
}

void write_model(const Checkpoint& source, const PlannedModel& plan, const std::string& out,
                 bool replace, ThreadPool& threads,
                 const std::function<void(uint64_t written)>& progress) {
  StagedOutput staged(out, plan.is_directory);
  for (const PlannedFile& file : plan.files) {
    const size_t number = staged.add_file(file.name, file.bytes);
    staged.write(number, 0, std::as_bytes(std::span(file.head)));
  }
  const std::vector<Slice> slices = slices_of(plan);
  std::mutex mutex;
  uint64_t written = 0;
  threads.parallel_for(static_cast<int64_t>(slices.size()), [&](int64_t i) {
    thread_local std::vector<std::byte> bytes;
    const Slice& slice = slices[static_cast<size_t>(i)];
    fill(source, slice, bytes);
    const Pieces pieces(*slice.tensor->tensor);
    staged.write(slice.file, slice.tensor->offset + slice.first * pieces.bytes, bytes);
    const std::lock_guard lock(mutex);
    progress(written += bytes.size());
  });
  staged.commit(replace);
}

}  // namespace headrace
