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
  std::string numerics;  // what else decides the bits: "kv=f16 math=f32 wire=f32"
};

class ResultsFile {
 public:
  struct Options {
    std::string path;  // "-": standard output, no journal, no manifest, no lock
    bool resume = false;
    bool token_ids = false;                                // write "token_ids" in each choice
    std::function<std::string(int token)> token_text;      // for logprobs' "token" fields
    std::function<std::string(int token)> token_raw_bytes; // for logprobs' "bytes" fields
  };

  // Opens and locks the file (flock on the file itself: nothing stays behind when a process dies).
  // Without resume an existing non-empty file is refused; with resume a torn last line is dropped
  // and the manifest must agree, field by field. Throws UsageError, IoError.
  ResultsFile(Options options, const Manifest& manifest);
  ~ResultsFile();

  // True if the file already holds a result (or an error record) for this request.
  bool has(std::string_view custom_id) const;
  int64_t resumed() const;  // records found by resume

  // Appends one line; it is on disk (fdatasync) at most one second later, whatever the caller does
  // in between. Throws IoError (at this or a later call) after cutting a torn line off again.
  // One thread calls these.
  void append(const RequestResult& result);
  void append(const BadLine& error);
  // Everything appended is on disk on return.
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headrace
