#include "comm/nccl/nccl_wires.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "comm/error.h"

namespace headrace {
namespace {

// Blocks of a kernel that sends or receives: it keeps the device from as much computing as long as
// it waits for the other end.
constexpr int kMostBlocks = 2;

// "unhandled system error: socketStartConnect: ..."
std::string reason(const NcclFunctions& nccl, ncclResult_t code, ncclComm_t comm) {
  const char* const last = nccl.last_error(comm);
  return std::string(nccl.error_string(code)) + (last && *last ? std::string(": ") + last : "");
}

class NcclWire final : public DeviceWire {
 public:
  NcclWire(const NcclFunctions& nccl, std::unique_ptr<WireStream> stream, WireEnd end)
      : nccl_(nccl), stream_(std::move(stream)), sends_(end == WireEnd::kSends) {}
  ~NcclWire() override { abort(); }

  void connect(const ncclUniqueId& id) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.maxCTAs = kMostBlocks;
    expect(nccl_.init_rank(&comm_, 2, id, sends_ ? 0 : 1, &config), "connecting");
  }

  bool connected() override {
    if (state_ == State::kStarting && settled()) {
      begin_probe();
      state_ = State::kProbing;
    }
    if (state_ == State::kProbing && taken() && settled() && stream_->passed() == 1) {
      state_ = State::kOpen;
    }
    return state_ == State::kOpen;
  }

  void send(const std::byte* device, size_t bytes) override {
    expect(nccl_.send(device, bytes, ncclInt8, 1, comm_, stream_->get()), "sending");
    handing_over_ = true;
  }
  void receive(std::byte* device, size_t bytes) override {
    expect(nccl_.receive(device, bytes, ncclInt8, 0, comm_, stream_->get()), "receiving");
    handing_over_ = true;
  }

  // Only then is it in the stream, and can a mark be after it.
  bool taken() override {
    if (handing_over_ && settled()) {
      on_stream([this] { stream_->mark(); });
      handing_over_ = false;
    }
    return !handing_over_;
  }

  uint64_t completed() override {
    settled();
    return on_stream([this] { return stream_->passed(); }) - 1;  // the first one was the probe
  }

  bool close() override {
    if (state_ == State::kOpen) {
      expect(nccl_.finalize(comm_), "closing");
      state_ = State::kClosing;
    }
    if (state_ == State::kClosing && settled()) {
      nccl_.destroy(std::exchange(comm_, nullptr));
      state_ = State::kClosed;
    }
    return state_ == State::kClosed;
  }

  void abort() override {
    if (!comm_) return;
    nccl_.abort(std::exchange(comm_, nullptr));
    stream_->drain();
  }

 private:
  enum class State { kStarting, kProbing, kOpen, kClosing, kClosed };

  void begin_probe() {
    if (sends_) {
      send(stream_->probe(), kProbeBytes);
    } else {
      receive(stream_->probe(), kProbeBytes);
    }
  }

  // Once the wire is open its GPU had worked: where it fails then it is lost.
  template <typename Call>
  std::invoke_result_t<Call> on_stream(Call call) {
    try {
      return call();
    } catch (const CommError& e) {
      if (state_ < State::kOpen) throw;
      throw PeerLost(std::string(e.what()) + "; run again with --resume");
    }
  }

  // What was begun last needs nothing more of this thread. Throws what went wrong meanwhile.
  bool settled() {
    ncclResult_t state = ncclSuccess;
    expect(nccl_.get_async_error(comm_, &state), "asking for errors");
    expect(state, "passing data");
    return state != ncclInProgress;
  }

  // Throws if the code says so.
  void expect(ncclResult_t code, const char* what) {
    if (code == ncclSuccess || code == ncclInProgress) return;
    const std::string text = std::string("NCCL: ") + what + ": " + reason(nccl_, code, comm_);
    // The peer's, or a GPU's.
    const bool may_be_mended = code == ncclRemoteError || code == ncclSystemError ||
                               code == ncclInternalError || code == ncclUnhandledCudaError;
    if (state_ < State::kOpen || !may_be_mended) throw CommError(text);
    throw PeerLost(text + "; run again with --resume");
  }

  const NcclFunctions& nccl_;
  const std::unique_ptr<WireStream> stream_;
  const bool sends_;
  ncclComm_t comm_ = nullptr;
  State state_ = State::kStarting;
  bool handing_over_ = false;  // what was begun last is not in the stream yet
};

}  // namespace

std::string NcclWires::version() {
  int version = 0;
  nccl_.get_version(&version);
  return "NCCL " + nccl_version_text(version);
}

Bytes NcclWires::make_id() {
  ncclUniqueId id;
  const ncclResult_t code = nccl_.get_unique_id(&id);
  if (code != ncclSuccess) throw CommError("NCCL: starting: " + reason(nccl_, code, nullptr));
  const auto* const bytes = reinterpret_cast<const std::byte*>(&id);
  return Bytes(bytes, bytes + sizeof id);
}

std::unique_ptr<DeviceWire> NcclWires::connect(int device, const Bytes& bytes, WireEnd end) {
  ncclUniqueId id;
  if (bytes.size() != sizeof id) throw CommError("NCCL: the other end's id has another size");
  std::memcpy(&id, bytes.data(), sizeof id);
  auto wire = std::make_unique<NcclWire>(nccl_, make_stream_(device), end);
  wire->connect(id);
  return wire;
}

}  // namespace headrace
