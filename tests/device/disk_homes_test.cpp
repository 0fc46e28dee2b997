// KV pages beside a device, some of them in host memory and on disk, as a sweep uses them: every
// token is read as it was written, on a device that does its work in any order that streams and
// events allow and with transfers that are done at the first or at the last moment.
#include "engine/device/disk_homes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <map>

#include "engine/device/kv_window.h"
#include "engine/error.h"
#include "engine/memory/kv_store.h"
#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"
#include "tests/unit/fault_queue.h"

namespace headrace {
namespace {

using test::FakeDevice;
using test::FaultQueue;

constexpr KvPageShape kShape{2, 24, KvFormat::kF16};
const size_t kToken = kShape.page_bytes() / kPageTokens;
constexpr int kLayers = 3, kSlots = 5;
constexpr int64_t kLongest = 20, kRoom = 24;  // pages of a sequence; of a layer on the device

// A disk in memory: who does not wait for a transfer, or writes to its memory meanwhile, sees the
// difference.
class EarlyOrLateQueue final : public IoQueue {
 public:
  explicit EarlyOrLateQueue(uint64_t seed) : random_(seed) {}

  IoTicket read(const File& file, uint64_t offset, std::span<std::byte> memory) override {
    disk_.resize(file.size());
    return start([this, offset, memory] {
      std::memcpy(memory.data(), disk_.data() + offset, memory.size());
    });
  }
  IoTicket write(const File& file, uint64_t offset, std::span<const std::byte> memory) override {
    disk_.resize(file.size());
    return start([this, offset, memory] {
      std::memcpy(disk_.data() + offset, memory.data(), memory.size());
    });
  }
  void wait(IoTicket ticket) override {
    if (const auto late = late_.extract(ticket)) late.mapped()();
  }
  bool finished(IoTicket ticket) override { return !late_.contains(ticket); }
  void register_memory(std::span<std::byte>) override {}
  void register_file(const File&) override {}
  int depth() const override { return 1000; }
  std::string description() const override { return "early or late"; }

 private:
  IoTicket start(std::function<void()> transfer) {
    if (random_.below(2) == 0) {
      transfer();
    } else {
      late_[started_ + 1] = std::move(transfer);
    }
    return ++started_;
  }
  Random random_;
  std::vector<std::byte> disk_;
  IoTicket started_ = 0;
  std::map<IoTicket, std::function<void()>> late_;
};

struct Rooms {
  int64_t on_device, on_host, on_disk;  // pages; on the host and on disk in runs of 16
  bool ahead = true;
};

// What a token's K and V are: the same byte all over its place in the page.
std::byte mark(int slot, int life, int layer, int64_t position) {
  return static_cast<std::byte>(((slot * 5 + life) * 7 + layer) * 31 + position * 3 + 1);
}

// Sequences of random lengths that grow by random steps, some of whose rows are in two visits to a
// layer.
class Sweeps {
 public:
  Sweeps(uint64_t seed, const Rooms& rooms, FaultQueue::Faults faults,
         FakeDevice::Fault fault = FakeDevice::Fault::kNone)
      : device_(seed, fault),
        random_(seed),
        compute_(device_.make_stream()),
        sizes_(window_sizes(rooms)),
        host_(budget_.allocate(KvWindow::host_bytes(sizes_), "KV cache")),
        pin_(device_.pin({host_.data(), host_.size()})),
        arena_(device_.allocate(KvStore::bytes_per_page(kShape, kLayers) * rooms.on_device)),
        window_(device_, *compute_, host_.data(), sizes_,
                {testing::TempDir(),
                 [seed, faults] {
                   return std::make_unique<FaultQueue>(std::make_unique<EarlyOrLateQueue>(seed),
                                                       faults);
                 },
                 rooms.ahead}),
        store_(kShape, kLayers, kSlots, {arena_->data(), rooms.on_device}, &window_) {}

  // Whether all tokens were as they should be.
  bool run(int steps) {
    for (int step = 0; step < steps && is_right_; ++step) {
      const std::vector<BatchItem> batch = random_batch();
      for (const BatchItem& item : batch) {
        store_.reserve(item.slot, item.first_position + item.rows);
      }
      const std::vector<std::vector<BatchItem>> visits = cut(batch);
      store_.begin_sweep({visits.begin(), visits.end()});
      for (int layer = 0; layer < kLayers; ++layer) {
        for (size_t v = 0; v < visits.size(); ++v) {
          store_.acquire(layer, v);
          for (const BatchItem& item : visits[v]) use(item, layer);
          store_.release(layer, v);
        }
      }
      for (const BatchItem& item : batch) lengths_[item.slot] += item.rows;
      // Mostly, sweeps follow each other without a word to the device.
      if (random_.below(3) == 0) look();
    }
    look();
    return is_right_;
  }

 private:
  static KvWindow::Sizes window_sizes(const Rooms& rooms) {
    KvWindow::Sizes sizes;
    sizes.stride = io_aligned(kShape.page_bytes());
    sizes.layers = kLayers;
    sizes.homes = rooms.on_host;
    sizes.room = kRoom;
    sizes.disk_homes = rooms.on_disk;
    sizes.slots = kSlots;
    sizes.filled = kRoom;
    return sizes;
  }

  std::vector<BatchItem> random_batch() {
    std::vector<BatchItem> batch;
    for (int slot = 0; slot < kSlots; ++slot) {
      int64_t& length = lengths_[slot];
      if (length == kLongest * kPageTokens || random_.below(40) == 0) {
        store_.release(slot);
        length = 0;
        ++lives_[slot];
      }
      if (random_.below(4) == 0) continue;
      const int64_t wanted = random_.below(3) == 0 ? 1 + random_.below(150) : 1;
      batch.push_back({slot, length, std::min(wanted, kLongest * kPageTokens - length)});
    }
    return batch;
  }

  std::vector<std::vector<BatchItem>> cut(const std::vector<BatchItem>& batch) {
    std::vector<std::vector<BatchItem>> visits;
    int64_t room = 0;
    for (const BatchItem& item : batch) {
      const int64_t pages = store_.visiting_pages(item.slot);
      if (visits.empty() || pages > room || random_.below(3) == 0) {
        visits.emplace_back();
        room = kRoom;
      }
      room -= pages;
      const int64_t rows = random_.below(2) == 0 ? item.rows : 1 + random_.below(item.rows);
      visits.back().push_back({item.slot, item.first_position, rows});
      if (rows == item.rows) continue;
      visits.push_back({{item.slot, item.first_position + rows, item.rows - rows}});
      room = kRoom - pages;
    }
    return visits;
  }

  // Fetches the pages that have tokens and brings the new ones.
  void use(const BatchItem& item, int layer) {
    const int64_t end = item.first_position + item.rows;
    for (int64_t first = 0; first < end; first += kPageTokens) {
      std::byte* const page = store_.pages(item.slot, layer)[first / kPageTokens];
      const int64_t last = std::min(first + kPageTokens, end);
      const int64_t known = std::clamp(item.first_position, first, last);
      if (known > first) {
        auto& seen = seen_.emplace_back(Seen{item.slot, lives_[item.slot], layer, first, {}});
        seen.tokens.resize(static_cast<size_t>(known - first) * kToken);
        device_.copy_out(*compute_, seen.tokens, page);
      }
      if (known == last) continue;
      std::vector<std::byte>& fresh = fresh_.emplace_back();
      for (int64_t position = known; position < last; ++position) {
        fresh.insert(fresh.end(), kToken, mark(item.slot, lives_[item.slot], layer, position));
      }
      device_.copy_in(*compute_, page + static_cast<size_t>(known - first) * kToken, fresh);
    }
  }

  void look() {
    compute_->synchronize();
    for (const Seen& seen : seen_) {
      for (size_t i = 0; i < seen.tokens.size(); i += kToken) {
        const int64_t position = seen.first + static_cast<int64_t>(i / kToken);
        const std::byte expected = mark(seen.slot, seen.life, seen.layer, position);
        is_right_ &= seen.tokens[i] == expected && seen.tokens[i + kToken - 1] == expected;
      }
    }
    seen_.clear();
    fresh_.clear();
  }

  // Tokens of a page that were fetched.
  struct Seen {
    int slot, life, layer;
    int64_t first;
    std::vector<std::byte> tokens;
  };

  FakeDevice device_;
  Random random_;
  std::unique_ptr<DeviceStream> compute_;
  MemoryBudget budget_{"host memory", 1 << 26};
  KvWindow::Sizes sizes_;
  Buffer host_;
  std::unique_ptr<DevicePin> pin_;
  std::unique_ptr<DeviceBuffer> arena_;
  std::list<Seen> seen_;
  std::list<std::vector<std::byte>> fresh_;
  KvWindow window_;
  KvStore store_;
  int64_t lengths_[kSlots] = {};
  int lives_[kSlots] = {};
  bool is_right_ = true;
};

constexpr int64_t kAll = kSlots * 32;
constexpr Rooms kRooms[] = {
    {0, 0, kAll}, {0, 48, kAll - 48}, {30, 0, kAll - 32}, {7, 16, kAll}, {7, 32, kAll, false},
};

TEST(DiskHomes, EveryTokenIsReadAsItWasWrittenOnDeviceHostAndDisk) {
  for (const Rooms& rooms : kRooms) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      Sweeps sweeps(seed, rooms, {.hesitates = seed % 2 == 1});
      ASSERT_TRUE(sweeps.run(60)) << "seed " << seed << ", " << rooms.on_device << " pages, "
                                  << rooms.on_host << " and " << rooms.on_disk;
    }
  }
}

// The first test sees waits that are missing.
TEST(DiskHomes, NothingWorksWithoutWaits) {
  for (const FakeDevice::Fault fault :
       {FakeDevice::Fault::kStreamsDoNotWait, FakeDevice::Fault::kHostDoesNotWait}) {
    bool is_right = true;
    for (uint64_t seed = 0; seed < 20 && is_right; ++seed) {
      is_right = Sweeps(seed, kRooms[0], {}, fault).run(60);
    }
    EXPECT_FALSE(is_right);
  }
}

// The page of a sequence that is gone may still be on its way when its home is another's.
TEST(DiskHomes, AHomeThatIsTakenAgainHasWhatCameLast) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    FakeDevice device(seed);
    std::vector<std::byte> host(5 * kIoAlignment);
    std::list<std::vector<std::byte>> values;
    const auto copies = device.make_stream();
    const KvDiskAccess disk{testing::TempDir(),
                            [seed] { return std::make_unique<EarlyOrLateQueue>(seed); }};
    DiskHomes homes(device, disk, host.data(), {kIoAlignment, 1, 5, 1, 4});
    const auto page = device.allocate(kIoAlignment);
    // Others after it, for which there is no room as long as it is not written.
    for (const int home : {0, 0, 1, 2, 3, 4}) {
      homes.begin_sweep({{}});
      homes.acquire();
      homes.release(*copies);
      const auto& value = values.emplace_back(kIoAlignment, std::byte(values.size()));
      device.copy_in(*copies, page->data(), value);
      device.copy_out(*copies, {homes.leave(0, home), kIoAlignment}, page->data());
      homes.end_visit(*copies);
      copies->synchronize();
      homes.go_on();
    }
    homes.begin_sweep({{{0}}});
    homes.acquire();
    ASSERT_EQ(*homes.page(0), std::byte{1}) << "seed " << seed;
  }
}

// As far as there is room, whatever the device does meanwhile.
TEST(DiskHomes, PagesAreReadAheadOfKernels) {
  FakeDevice device(1);
  constexpr KvWindow::Sizes kSizes{kIoAlignment, 2, 0, 6, 0, 16, 1, 1};
  MemoryBudget budget("host memory", 1 << 20);
  Buffer host = budget.allocate(KvWindow::host_bytes(kSizes), "KV cache");
  const auto compute = device.make_stream(), other = device.make_stream();
  FaultQueue* queue = nullptr;
  KvWindow window(device, *compute, host.data(), kSizes,
                  {testing::TempDir(), [&queue] {
                     auto made =
                         std::make_unique<FaultQueue>(make_io_queue(8), FaultQueue::Faults{});
                     queue = made.get();
                     return made;
                   }});
  const auto full = [](int64_t home) { return KvPassage::Page{home, true, false, true, 0}; };
  device.hold(*compute);
  window.begin_sweep({{full(0), full(1)}, {full(2), full(3)}, {full(4), full(5)}});
  window.acquire(0, 0);
  EXPECT_GE(queue->asked().size(), 3U);
  std::vector<std::byte> some(kIoAlignment);
  for (int i = 0; i < 50; ++i) {  // copies are done meanwhile
    device.copy_out(*other, some, window.page(0));
    other->synchronize();
  }
  window.release();
  EXPECT_GT(queue->asked().size(), 3U) << "of the next layer";
  EXPECT_EQ(queue->asked().back().bytes, 2 * kIoAlignment) << "what lies together";
  device.let_go();
}

// The rows of a sequence may be in two visits to a layer.
TEST(DiskHomes, PagesThatLeaveAreThereForTheNextVisitAtOnce) {
  FakeDevice device(1);
  constexpr KvWindow::Sizes kSizes{kIoAlignment, 1, 0, 6, 0, 16, 1, 1};
  MemoryBudget budget("host memory", 1 << 20);
  Buffer host = budget.allocate(KvWindow::host_bytes(kSizes), "KV cache");
  const auto compute = device.make_stream();
  KvWindow window(device, *compute, host.data(), kSizes,
                  {testing::TempDir(), [] { return make_io_queue(8); }});
  device.hold(*compute);
  window.begin_sweep({{{0, false, true, true, 0}}, {{0, true, false, true, 0}}});
  window.acquire(0, 0);
  window.release();
  EXPECT_NO_THROW(window.acquire(0, 1)) << "it waits for the device";
  device.let_go();
}

TEST(DiskHomes, ATransferThatFailsIsSaidWithFileAndPlace) {
  int failures = 0;
  for (uint64_t failing = 1;; failing += 1 + failing / 4, ++failures) {
    try {
      Sweeps(1, kRooms[0], {.failing = failing}).run(20);
      break;
    } catch (const IoError& e) {
      const std::string text = e.what();
      EXPECT_NE(text.find("(temporary file) at offset"), text.npos) << text;
    }
  }
  EXPECT_GT(failures, 8);
}

TEST(DiskHomes, ADiskThatIsFullIsFoundAtOnce) {
  FakeDevice device(1);
  const KvDiskAccess disk{testing::TempDir(), [] { return make_io_queue(1); }};
  std::vector<std::byte> host(8192);
  const DiskHomes::Sizes sizes{4096, 1 << 20, int64_t{1} << 20, 1, 1};
  EXPECT_THROW(DiskHomes(device, disk, host.data(), sizes), IoError);
}

}  // namespace
}  // namespace headrace
