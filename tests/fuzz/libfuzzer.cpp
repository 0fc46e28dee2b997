// One libFuzzer target: FUZZ_READER is the reader's name. See README.md.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/readers.h"
#include "tests/unit/model_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace headrace;
  static const int in_memory = ::setenv("TMPDIR", "/dev/shm", /*overwrite=*/0);
  static const test::TempDir folder;
  static const fuzz::Reader* const reader = fuzz::find_reader(FUZZ_READER);
  (void)in_memory;
  reader->accepts(folder.path(), std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
