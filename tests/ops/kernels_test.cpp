// Choosing a vector target.

#include "engine/ops/cpu/kernels.h"

#include <algorithm>
#include <stdexcept>

#include "engine/error.h"
#include "tests/ops/op_test.h"

namespace headrace {
namespace {

TEST(Kernels, EveryTargetIsUsableOrRefusedByName) {
  const std::vector<Target> supported = supported_targets();
  for (const Target target : {Target::kAvx512, Target::kAvx2, Target::kScalar}) {
    const std::string name = target_name(target);
    SCOPED_TRACE(name);
    if (std::find(supported.begin(), supported.end(), target) == supported.end()) {
      EXPECT_THROW(kernels(target), ResourceMissing);
      EXPECT_THROW(kernels(name), ResourceMissing);
      continue;
    }
    const Kernels& table = kernels(target);
    EXPECT_EQ(table.target, target);
    EXPECT_EQ(table.name, name);
    EXPECT_EQ(&kernels(name), &table);
    EXPECT_EQ(std::count(std::begin(table.expand), std::end(table.expand), nullptr), 0);
  }
}

TEST(Kernels, AutoIsTheBest) {
  const std::vector<Target> supported = supported_targets();
  ASSERT_FALSE(supported.empty()) << "these tests need a CPU with FMA";
  EXPECT_EQ(kernels("auto").target, supported.front());
  EXPECT_EQ(supported.back(), Target::kScalar);
  EXPECT_TRUE(std::is_sorted(supported.rbegin(), supported.rend()));
}

TEST(Kernels, UnknownNamesListTheKnown) {
  for (const char* name : {"", "AVX2", "neon", "auto "}) {
    try {
      kernels(std::string_view(name));
      FAIL() << name;
    } catch (const std::invalid_argument& e) {
      EXPECT_NE(std::string(e.what()).find("auto, avx512, avx2 or scalar"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace headrace
