// How long the requests of an input are, before it is read: what memory is planned for.
#pragma once

#include <cstdint>
#include <string>

#include "comm/communicator.h"
#include "runtime/requests/request.h"

namespace headrace {

// 0: not known.
struct RequestSizes {
  // Prompt and generated tokens of a sequence.
  int64_t usual = 0;      // rather more than less
  int64_t longest = 0;    // no request has more
  int64_t prompt = 0;     // of `usual`, the prompt's
  int64_t sequences = 0;  // that the whole input has
  bool sampled = false;   // some need more of the logits than the largest one
  int64_t logprobs = 0;   // bytes that those of one sequence may take until they are written
  int64_t lines = -1;     // that are not blank; negative: not known
};

// Reads a batch file through; what is usual is taken from its first thousand requests. Nothing is
// known of one that comes_once(). Throws UsageError, IoError.
RequestSizes sizes_of_requests(const std::string& input, const RequestDefaults& defaults);
// Of one prompt.
RequestSizes sizes_of_prompt(const std::string& prompt, const RequestDefaults& defaults);

// What rank 0 passes, on all ranks.
RequestSizes from_rank_0(Communicator& communicator, const RequestSizes& sizes);

}  // namespace headrace
