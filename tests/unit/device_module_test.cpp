// Opening device modules: the right one, wrong ones, and CUDA's own where this machine has no GPU.
#include "engine/device/device_module.h"

#include <gtest/gtest.h>

#include <fstream>

#include "engine/error.h"
#include "headrace/version.h"
#include "tests/unit/model_files.h"
#ifdef CUDA_MODULE
#include "tests/device/cuda_module.h"
#endif

namespace headrace {
namespace {

void expect_missing(const std::string& file, const std::vector<std::string>& words) {
  try {
    open_device_module(file)->count();
    FAIL() << file << " can be used";
  } catch (const ResourceMissing& e) {
    for (const std::string& word : words) {
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << word << "\n" << e.what();
    }
  }
}

TEST(DeviceModule, Opens) {
  for (int time = 0; time < 2; ++time) {
    const auto module = open_device_module(FAKE_GOOD);
    EXPECT_EQ(module->count(), 2);
    EXPECT_EQ(module->facts(1).name, "fake 1");
    EXPECT_EQ(module->measure_link(0).to_device, 50e9);
    EXPECT_EQ(module->software(), "no CUDA");
  }
}

TEST(DeviceModule, SaysWhatIsWrong) {
  const test::TempDir folder;
  expect_missing(folder / kCudaModule, {kCudaModule, "HEADRACE_CUDA"});
  test::write_file(folder / kCudaModule, "not a library");
  expect_missing(folder / kCudaModule, {folder / kCudaModule});
  expect_missing(FAKE_OLD, {"0.0.1 (old)", HEADRACE_VERSION, "one build"});
  expect_missing(FAKE_OTHER, {"not a module of headrace", kModuleVersion});
  expect_missing(FAKE_NEEDY, {"of_a_library_that_is_not_there"});
}

#ifdef CUDA_MODULE
// With a GPU it works, without one it opens and says why not.
TEST(DeviceModule, CudaHasDevicesOrAReason) {
  const auto module = open_device_module(test::cuda_module());
  EXPECT_EQ(module->software().find("CUDA "), 0u) << module->software();
  int devices = 0;
  try {
    devices = module->count();
  } catch (const ResourceMissing& e) {
    GTEST_SKIP() << e.what();
  }
  ASSERT_GT(devices, 0);
  std::string driver;
  std::getline(std::ifstream("/sys/module/nvidia/version"), driver);
  EXPECT_NE(module->software().find("driver " + driver), std::string::npos) << module->software();
  const DeviceFacts facts = module->facts(0);
  EXPECT_FALSE(facts.name.empty());
  EXPECT_GT(facts.memory_total, uint64_t{1} << 30);
  EXPECT_LE(facts.memory_free, facts.memory_total);
  const DeviceLinkRates rates = module->measure_link(0);
  EXPECT_GT(rates.to_device, 1e8);
  EXPECT_GT(rates.from_device, 1e8);
  EXPECT_THROW(module->facts(devices), ResourceMissing);
}
#endif

}  // namespace
}  // namespace headrace
