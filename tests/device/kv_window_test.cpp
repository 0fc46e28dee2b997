// KV pages that pass through a window on a device, on one that does its work in any order that
// streams and events allow: visits find what was written before, whether by visits or by the host
// at home, and homes end up with all of it.
#include "engine/device/kv_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"

namespace headrace {
namespace {

using test::FakeDevice;
using Page = KvPassage::Page;

constexpr int kLayers = 3;
constexpr int64_t kHomes = 24, kRoom = 7, kFloats = 8;
constexpr size_t kStride = kFloats * sizeof(float);
constexpr KvWindow::Sizes kSizes{kStride, kLayers, kHomes, kRoom};

using Contents = std::vector<std::vector<float>>;  // [layer * kHomes + home]

// Visits of a sweep to random pages, some of which come twice.
std::vector<std::vector<Page>> random_visits(Random& random, std::vector<bool>& has_tokens) {
  std::vector<std::vector<Page>> visits;
  std::vector<bool> filled = has_tokens;
  for (int64_t left = 1 + random.below(5); left > 0; --left) {
    std::vector<Page>& visit = visits.emplace_back();
    int64_t home = random.below(kHomes);
    for (int64_t pages = random.below(kRoom + 1); pages > 0; --pages) {
      const bool is_there = std::any_of(visit.begin(), visit.end(),
                                        [&](const Page& page) { return page.home == home; });
      if (is_there) break;
      const bool has = filled[static_cast<size_t>(home)];
      visit.push_back({home, has, !has || random.below(2) == 0});
      filled[static_cast<size_t>(home)] = true;
      // Often the one beside it.
      home = random.below(4) == 0 ? random.below(kHomes) : (home + 1) % kHomes;
    }
  }
  has_tokens = filled;
  return visits;
}

// Pages with tokens that no visit has.
std::vector<int64_t> pages_at_home(Random& random, const std::vector<std::vector<Page>>& visits,
                                   const std::vector<bool>& had_tokens) {
  std::vector<int64_t> homes;
  for (int64_t home = 0; home < kHomes; ++home) {
    bool is_free = had_tokens[static_cast<size_t>(home)] && random.below(2) == 0;
    for (const auto& visit : visits) {
      for (const Page& page : visit) is_free &= page.home != home;
    }
    if (is_free) homes.push_back(home);
  }
  return homes;
}

struct Outcome {
  Contents seen;   // what visits and the host found, page by page
  Contents homes;  // at the end
  bool operator==(const Outcome&) const = default;
};

// A visit doubles what it finds in pages that it writes and adds one; new ones begin at nothing.
// The host adds two.
Outcome expected(uint64_t seed) {
  Random random(seed);
  Outcome outcome;
  outcome.homes.assign(kLayers * kHomes, std::vector<float>(kFloats, -1.0f));
  std::vector<bool> has_tokens(kHomes, false);
  for (int sweep = 0; sweep < 4; ++sweep) {
    const std::vector<bool> had_tokens = has_tokens;
    const auto visits = random_visits(random, has_tokens);
    const auto at_home = pages_at_home(random, visits, had_tokens);
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const int64_t number : at_home) {
        auto& home = outcome.homes[static_cast<size_t>(layer * kHomes + number)];
        outcome.seen.push_back(home);
        for (float& x : home) x += 2;
      }
      for (const auto& visit : visits) {
        for (const Page& page : visit) {
          auto& home = outcome.homes[static_cast<size_t>(layer * kHomes + page.home)];
          if (!page.has_tokens) std::fill(home.begin(), home.end(), static_cast<float>(layer));
          outcome.seen.push_back(home);
          if (!page.is_written) continue;
          for (float& x : home) x = 2 * x + 1;
        }
      }
    }
  }
  return outcome;
}

Outcome on_device(uint64_t seed, FakeDevice::Fault fault = FakeDevice::Fault::kNone) {
  FakeDevice device(seed, fault);
  Random random(seed);
  std::vector<float> host(KvWindow::host_bytes(kSizes) / sizeof(float), -1.0f);
  std::vector<float> layers;  // [layer][kFloats], then ones
  for (int layer = 0; layer < kLayers; ++layer) {
    layers.insert(layers.end(), kFloats, static_cast<float>(layer));
  }
  layers.insert(layers.end(), kFloats, 1.0f);
  const auto compute = device.make_stream();
  const auto ones = device.allocate(kStride);
  device.copy_in(*compute, ones->data(), std::as_bytes(std::span(layers)).last(kStride));
  std::vector<std::vector<float>> seen(4 * kLayers * (5 * kRoom + kHomes),
                                       std::vector<float>(kFloats));
  size_t looked = 0;
  {
    KvWindow window(device, *compute, reinterpret_cast<std::byte*>(host.data()), kSizes);
    std::vector<bool> has_tokens(kHomes, false);
    for (int sweep = 0; sweep < 4; ++sweep) {
      const std::vector<bool> had_tokens = has_tokens;
      const auto visits = random_visits(random, has_tokens);
      const auto at_home = pages_at_home(random, visits, had_tokens);
      window.begin_sweep(visits);
      for (int layer = 0; layer < kLayers; ++layer) {
        window.await_homes();
        for (const int64_t number : at_home) {
          auto* const x = reinterpret_cast<float*>(window.at_home(layer, number));
          std::copy_n(x, kFloats, seen[looked++].begin());
          for (int64_t i = 0; i < kFloats; ++i) x[i] += 2;
        }
        for (size_t visit = 0; visit < visits.size(); ++visit) {
          window.acquire(layer, visit);
          for (size_t i = 0; i < visits[visit].size(); ++i) {
            const Page& page = visits[visit][i];
            auto* const x = reinterpret_cast<float*>(window.page(static_cast<int64_t>(i)));
            if (!page.has_tokens) {
              device.copy_in(*compute, reinterpret_cast<std::byte*>(x),
                             std::as_bytes(std::span(layers)).subspan(layer * kStride, kStride));
            }
            device.copy_out(*compute, std::as_writable_bytes(std::span(seen[looked++])),
                            reinterpret_cast<std::byte*>(x));
            if (!page.is_written) continue;
            device.add(*compute, x, x, 1, kFloats);
            device.add(*compute, x, ones->as<float>(), 1, kFloats);
          }
          window.release();
        }
      }
    }
  }
  compute->synchronize();
  seen.resize(looked);
  Outcome outcome{std::move(seen), {}};
  for (size_t i = 0; i < host.size(); i += kFloats) {
    outcome.homes.emplace_back(host.begin() + static_cast<int64_t>(i),
                               host.begin() + static_cast<int64_t>(i) + kFloats);
  }
  return outcome;
}

TEST(KvWindow, VisitsSeeWhatWasWrittenAndHomesGetIt) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    ASSERT_TRUE(expected(seed) == on_device(seed)) << "seed " << seed;
  }
}

// The first test sees waits that are missing.
TEST(KvWindow, NothingWorksWithoutWaits) {
  bool differs = false;
  for (uint64_t seed = 0; seed < 20 && !differs; ++seed) {
    differs = expected(seed) != on_device(seed, FakeDevice::Fault::kStreamsDoNotWait);
  }
  EXPECT_TRUE(differs);
  differs = false;
  for (uint64_t seed = 0; seed < 100 && !differs; ++seed) {
    differs = expected(seed) != on_device(seed, FakeDevice::Fault::kHostDoesNotWait);
  }
  EXPECT_TRUE(differs);
}

// Pages of the next visits come in while one computes, as far as there is room.
TEST(KvWindow, CopiesRunAheadOfKernels) {
  FakeDevice device(1);
  std::vector<std::byte> host(KvWindow::host_bytes(kSizes), std::byte{7});
  const auto compute = device.make_stream(), other = device.make_stream();
  KvWindow window(device, *compute, host.data(), kSizes);
  device.hold(*compute);
  window.begin_sweep({{{0, true, false}, {1, true, false}}, {{2, true, false}, {3, true, false}}});
  window.acquire(0, 0);
  std::vector<std::byte> next(kStride);
  // The second visit is the first's neighbour in the ring, and is there without it.
  for (int i = 0; i < 50 && next[0] != std::byte{7}; ++i) {
    device.copy_out(*other, next, window.page(2));
    other->synchronize();
  }
  EXPECT_EQ(next[0], std::byte{7});
  device.let_go();
}

TEST(KvWindow, RunsAreAMebibyteOrSixteenPages) {
  EXPECT_EQ(KvWindow::run_of(256 << 10), 4);
  EXPECT_EQ(KvWindow::run_of(8 << 10), 16);
  EXPECT_EQ(KvWindow::run_of(4 << 20), 1);
  EXPECT_EQ(KvWindow::homes_for(0, 5, 8 << 10), 0);
  EXPECT_EQ(KvWindow::homes_for(17, 5, 8 << 10), (2 + 5) * 16);
}

TEST(KvWindow, VisitsOutOfOrderOrTooLargeAreErrors) {
  FakeDevice device(1);
  std::vector<std::byte> host(KvWindow::host_bytes(kSizes));
  const auto compute = device.make_stream();
  KvWindow window(device, *compute, host.data(), kSizes);
  std::vector<Page> many(kRoom + 1, {0, false, true});
  EXPECT_THROW(window.begin_sweep({many}), std::logic_error);
  window.begin_sweep({{{0, false, true}}, {{1, false, true}}});
  EXPECT_THROW(window.acquire(0, 1), std::logic_error);
  EXPECT_THROW(window.begin_sweep({}), std::logic_error);
}

}  // namespace
}  // namespace headrace
