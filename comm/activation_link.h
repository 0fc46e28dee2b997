// Hidden states from the previous stage and to the next one, in host memory or a device's.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace headrace {

// A stage works in place in one of the link's buffers: it gets filled by the previous stage,
// computed on, and handed to the next stage. Buffers go round; a receive is posted ahead into every
// free one.
//
//   loop: buffer = receive(bytes)   or, on the first stage, take()
//         compute in place
//         send(buffer, bytes)       or, on the last stage, recycle(buffer)
class ActivationLink {
 public:
  using HiddenBuffer = std::span<std::byte>;

  virtual ~ActivationLink() = default;

  // The buffers to work with, kLinkBuffers spans of the same size, or one where there is one rank.
  // `receives`: the previous stage fills them by this link, and the first receives are posted; else
  // take() gives them. The memory is the caller's and must outlive the link. Call once, first.
  virtual void set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives) = 0;

  // First stage: a buffer that is free. Waits for earlier sends to complete. Throws PeerLost.
  virtual HiddenBuffer take() = 0;
  // The buffer with the next hidden states of the previous stage, which must be `bytes` long.
  virtual HiddenBuffer receive(size_t bytes) = 0;
  // Hands the first `bytes` of the buffer to the next stage; the buffer is the link's again.
  virtual void send(HiddenBuffer buffer, size_t bytes) = 0;
  // Gives a buffer back without sending it.
  virtual void recycle(HiddenBuffer buffer) = 0;

  // What of a buffer is in a device's memory.
  struct OnDevice {
    std::byte* memory = nullptr;  // as large as the buffer; none: nothing
    bool arrives = false;         // receive() leaves hidden states there, and not in the buffer
    bool leaves = false;          // send() takes them from there, and not from the buffer
  };
  virtual OnDevice on_device(HiddenBuffer) const { return {}; }
};

// Buffers a link between ranks needs: one computed on, one being sent, one being received.
inline constexpr int kLinkBuffers = 3;

}  // namespace headrace
