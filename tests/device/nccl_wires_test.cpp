// Wires over NCCL's functions, which a library that needs no GPU has here.
#include "comm/nccl/nccl_wires.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "comm/error.h"
#include "tests/device/fake_nccl.h"

namespace headrace {
namespace {

using test::FakeNccl;
using test::FakeStream;

class Stream final : public WireStream {
 public:
  cudaStream_t get() override { return reinterpret_cast<cudaStream_t>(&stream_); }
  std::byte* probe() override { return probe_; }
  void mark() override {
    stream_.work.emplace_back([this] {
      ++passed_;
      return true;
    });
  }
  uint64_t passed() override {
    if (fails) throw CommError("passing hidden states on the GPU failed");
    stream_.go_on();
    return passed_;
  }
  void drain() override { stream_.work.clear(); }

  static inline bool fails = false;

 private:
  FakeStream stream_;
  std::byte probe_[kProbeBytes] = {};
  uint64_t passed_ = 0;
};

std::string what_of(const auto& call) {
  try {
    call();
  } catch (const CommError& e) {
    return std::string("CommError ") + e.what();
  } catch (const PeerLost& e) {
    return std::string("PeerLost ") + e.what();
  }
  return "";
}

class NcclWiresTest : public testing::Test {
 protected:
  NcclWiresTest() : library_(*find()) {}
  ~NcclWiresTest() override {
    sends_.reset();
    receives_.reset();
    EXPECT_EQ(library_.alive, 0);
    EXPECT_EQ(library_.misused, 0);
    library_ = FakeNccl{};
  }

  static FakeNccl* find() {
    void* const opened = dlopen(FAKE_NCCL, RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<FakeNccl* (*)()>(dlsym(opened, test::kFakeNccl))();
  }

  void begin() {
    const Bytes id = wires_.make_id();
    sends_ = wires_.connect(0, id, WireEnd::kSends);
    receives_ = wires_.connect(0, id, WireEnd::kReceives);
  }
  void connect() {
    begin();
    int looks = 0;
    bool connected = false;
    while (!connected && ++looks < 100) {
      const bool one = sends_->connected(), other = receives_->connected();
      connected = one && other;
    }
    ASSERT_TRUE(connected);
    EXPECT_GT(looks, 1);
  }
  static void take(DeviceWire& wire) {
    int looks = 0;
    while (!wire.taken()) ASSERT_LT(++looks, 100);
  }

  FakeNccl& library_;
  NcclWires wires_{open_nccl(FAKE_NCCL), [](int) { return std::make_unique<Stream>(); }};
  std::unique_ptr<DeviceWire> sends_, receives_;
};

TEST_F(NcclWiresTest, TransfersAreDoneInOrderAndCounted) {
  connect();
  EXPECT_EQ(sends_->completed(), 0U);
  EXPECT_EQ(receives_->completed(), 0U);
  for (uint64_t i = 0; i < 50; ++i) {
    const std::vector<Bytes> from = {Bytes(i + 1, std::byte{1}), Bytes(i + 2, std::byte{2})};
    std::vector<Bytes> to = {Bytes(i + 1), Bytes(i + 2)};
    for (const Bytes& bytes : from) {
      sends_->send(bytes.data(), bytes.size());
      EXPECT_FALSE(sends_->taken());
      take(*sends_);
    }
    EXPECT_EQ(sends_->completed(), 2 * i);  // nobody receives
    for (Bytes& bytes : to) {
      receives_->receive(bytes.data(), bytes.size());
      take(*receives_);
    }
    for (int looks = 0; looks < 3; ++looks) {
      receives_->completed();
      sends_->completed();
    }
    EXPECT_EQ(receives_->completed(), 2 * i + 2);
    EXPECT_EQ(sends_->completed(), 2 * i + 2);
    EXPECT_TRUE(from == to) << i;
  }
  bool closed = false;
  for (int looks = 0; !closed && looks < 100; ++looks) {
    const bool one = sends_->close(), other = receives_->close();
    closed = one && other;
  }
  EXPECT_TRUE(closed);
  EXPECT_TRUE(sends_->close());
  sends_.reset();
  receives_.reset();
  EXPECT_EQ(library_.destroyed, 2);
  EXPECT_EQ(library_.aborted, 0);
}

TEST_F(NcclWiresTest, AnAbortEndsWhatIsUnderWay) {
  connect();
  Bytes bytes(8);
  receives_->receive(bytes.data(), bytes.size());
  receives_->abort();
  receives_->abort();
  EXPECT_EQ(library_.aborted, 1);
  receives_.reset();
  sends_.reset();
  EXPECT_EQ(library_.aborted, 2);
}

TEST_F(NcclWiresTest, ErrorsAreToldWithNcclsWords) {
  library_.fail_id = ncclInvalidUsage;
  std::string error = what_of([&] { wires_.make_id(); });
  EXPECT_EQ(error, "CommError NCCL: starting: some error: no interface is named nosuch0");
  library_.fail_id = 0;
  EXPECT_NE(what_of([&] { wires_.connect(0, Bytes(3), WireEnd::kSends); }), "");

  library_.fail_init = ncclSystemError;
  begin();
  error = what_of([&] {
    while (!sends_->connected()) {
    }
  });
  EXPECT_EQ(error.find("CommError NCCL: "), 0U) << error;
  EXPECT_NE(error.find("nosuch0"), std::string::npos) << error;
  library_.fail_init = 0;
}

TEST_F(NcclWiresTest, APeerOrGpuThatGoesIsLostAndOtherErrorsAreNot) {
  const Bytes bytes(8);
  for (const ncclResult_t code : {ncclRemoteError, ncclUnhandledCudaError, ncclInvalidArgument}) {
    library_.fail_transfer = 0;
    connect();
    library_.fail_transfer = code;
    sends_->send(bytes.data(), bytes.size());
    const std::string error = what_of([&] { take(*sends_); });
    const bool is_lost = code != ncclInvalidArgument;
    EXPECT_EQ(error.find(is_lost ? "PeerLost" : "CommError"), 0U) << error;
    EXPECT_EQ(error.find("--resume") != std::string::npos, is_lost) << error;
  }
}

TEST_F(NcclWiresTest, AStreamThatFailsIsALostGpu) {
  connect();
  Stream::fails = true;
  const std::string error = what_of([&] { sends_->completed(); });
  Stream::fails = false;
  EXPECT_EQ(error.find("PeerLost passing hidden states on the GPU failed"), 0U) << error;
}

TEST(OpenNccl, SaysItsVersionOrWhatIsWrong) {
  EXPECT_EQ(NcclWires(open_nccl(FAKE_NCCL), nullptr).version(), "NCCL 2.28.9");
  EXPECT_EQ(nccl_version_text(21403), "2.14.3");
  EXPECT_EQ(nccl_version_text(2804), "2.8.4");
  const std::string old = what_of([] { open_nccl(FAKE_NCCL_OLD); });
  EXPECT_NE(old.find("NCCL 2.13.4 is too old: 2.14"), std::string::npos) << old;
  const std::string none = what_of([] { open_nccl("libnothing.so.9"); });
  EXPECT_NE(none.find("opening libnothing.so.9 failed"), std::string::npos) << none;
  const std::string other = what_of([] { open_nccl(FAKE_OTHER); });
  EXPECT_NE(other.find("NCCL has no ncclGetVersion"), std::string::npos) << other;
}

}  // namespace
}  // namespace headrace
