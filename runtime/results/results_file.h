// The results file: finished requests as OpenAI batch output lines, appended in completion order.
// It is also the journal of a run: whole lines only, synced, and read back by --resume.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/requests/request.h"
#include "runtime/results/result.h"

namespace headrace {

// What must be the same for a run to be continued: written as <output>.manifest.json.
struct Manifest {
  std::string model_name;
  std::string model_fingerprint;
  RequestDefaults defaults;
  std::string numerics;     // what else decides the bits: "weights=native kv=f16 math=f32 wire=f32"
  std::string tokenizer;    // its fingerprint; empty: the model has none
  std::string chat_prompt;  // what the chat template makes of kSampleMessage; empty: there is none
  bool token_ids = false;   // records have them
};

inline constexpr const char* kSampleMessage = "Hello";

// One thread. A write beyond the file size limit and a write to a closed pipe become IoErrors only
// if the program ignores SIGXFSZ and SIGPIPE.
class ResultsFile {
 public:
  // Refuses what the constructor would refuse whatever the manifest says, before a model is opened.
  // Leaves everything as it was. Throws UsageError, IoError.
  static void check_path(const std::string& path, bool resume);

  struct Options {
    std::string path;  // "-": standard output, no journal, no manifest, no lock
    bool resume = false;
    bool token_ids = false;  // write "token_ids" in each choice
    // For logprobs; each may be empty, see result_json.h.
    std::function<std::string(int token)> token_text;
    std::function<std::string(int token)> token_raw_bytes;
    std::function<bool(int token)> is_special;
  };

  // Opens and locks the file (flock on the file itself: nothing stays behind when a process dies).
  // Without resume an existing non-empty file is refused; with resume a torn last line is dropped
  // and the manifest must agree, field by field. With resume and no file yet, a run begins.
  // The manifest is on disk when this returns. Throws UsageError, IoError.
  ResultsFile(Options options, const Manifest& manifest);
  // Closes, but has no way to say that it failed.
  ~ResultsFile();

  // True if the file holds a result or an error record for this request, from before or from this
  // run. Ids are compared by their 64-bit hash, as RequestReader does. Throws UsageError if what it
  // holds is of another line than the one with this digest.
  bool has(std::string_view custom_id, uint64_t digest) const;
  int64_t resumed() const;         // records found by resume
  int64_t resumed_errors() const;  // of these, error records

  // Appends one line; it is on disk (fdatasync) at most one second later, whatever the caller does
  // in between. Throws IoError if it cannot be written, after cutting a torn line off again: the
  // file then ends with a whole line and a later append may succeed. Throws IoError at this and
  // every later call if the disk lost what was written before; the file is then cut back to what is
  // on disk for certain. Throws std::logic_error for a request that the file has already.
  void append(const RequestResult& result);
  void append(const BadLine& error);
  // Everything appended is on disk on return; no append after it. Throws IoError.
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headrace
