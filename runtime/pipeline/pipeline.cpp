#include "runtime/pipeline/pipeline.h"

#include <algorithm>
#include <utility>

#include "engine/timeline.h"

namespace headrace {
namespace {

size_t hidden_bytes(const StepMessage& step, int64_t d_model) {
  return static_cast<size_t>(step.rows() * d_model) * sizeof(float);
}

// Waits for `get()`, which is another rank's to give.
template <typename Get>
auto from_peer(Get get) {
  const Wait wait(Wait::kPeer);
  return get();
}

// How long this thread has had nothing to do since it last asked.
class IdleTime {
 public:
  int64_t since_last() {
    const Timeline* timeline = Timeline::of_thread();
    if (!timeline) return 0;
    const int64_t all = timeline->time_of(Activity::kIdle);
    return all - std::exchange(seen_, all);
  }

 private:
  int64_t seen_ = 0;
};

// Of the wait for this step, the time in which rank 0 had none to give was no fault of a stage's.
void account_idle(int64_t idle_ns, int64_t waited_ns) {
  if (Timeline* timeline = Timeline::of_thread()) {
    timeline->reassign(Activity::kPeer, Activity::kIdle, std::min(idle_ns, waited_ns));
  }
}

// Runs the step on the buffer and hands it on: hidden states to the next stage or sampled tokens to
// the caller.
std::optional<StepResult> compute(Stage& stage, const StepMessage& step, int64_t d_model,
                                  ActivationLink::HiddenBuffer buffer, ActivationLink& link) {
  const auto floats = [](std::byte* memory) { return reinterpret_cast<float*>(memory); };
  const ActivationLink::OnDevice device = link.on_device(buffer);
  std::optional<StepResult> result = stage.run(
      step, floats(buffer.data()), {floats(device.memory), device.arrives, device.leaves});
  if (result) {
    link.recycle(buffer);
  } else {
    link.send(buffer, hidden_bytes(step, d_model));
  }
  return result;
}

}  // namespace

void run_coordinator(Coordinator& coordinator, Stage& stage, int64_t d_model, const Wires& wires,
                     const std::atomic<bool>& interrupted,
                     const std::function<void()>& after_step) {
  Communicator& ranks = wires.communicator;
  const int next = ranks.rank() + 1, last = ranks.size() - 1;
  IdleTime idle;
  while (!coordinator.finished()) {
    if (interrupted) coordinator.stop();
    if (!wires.is_last()) {
      while (auto result = ranks.try_receive(last, Channel::kTokens)) {
        coordinator.accept(decode_step_result(*result));
      }
    }
    if (std::optional<StepMessage> step = coordinator.next_step()) {
      step->idle_ns = idle.since_last();
      if (!wires.is_last()) ranks.send(next, Channel::kStep, encode(*step));
      const auto buffer = from_peer([&] { return wires.link.take(); });
      const auto result = compute(stage, *step, d_model, buffer, wires.link);
      if (result) coordinator.accept(*result);
    } else if (coordinator.steps_under_way()) {
      const Bytes tokens = from_peer([&] { return ranks.receive(last, Channel::kTokens); });
      coordinator.accept(decode_step_result(tokens));
    }
    after_step();
  }
  StepMessage over;
  over.stop = true;
  over.idle_ns = idle.since_last();
  if (!wires.is_last()) ranks.send(next, Channel::kStep, encode(over));
}

void run_stage(Stage& stage, int64_t d_model, const Wires& wires) {
  Communicator& ranks = wires.communicator;
  for (;;) {
    const int64_t begin = Timeline::now();
    const Bytes message =
        from_peer([&] { return ranks.receive(ranks.rank() - 1, Channel::kStep); });
    const StepMessage step = decode_step_message(message);
    account_idle(step.idle_ns, Timeline::now() - begin);
    if (!wires.is_last()) ranks.send(ranks.rank() + 1, Channel::kStep, message);
    if (step.stop) return;
    const auto buffer = from_peer([&] { return wires.link.receive(hidden_bytes(step, d_model)); });
    const auto result = compute(stage, step, d_model, buffer, wires.link);
    if (result) ranks.send(0, Channel::kTokens, encode(*result));
  }
}

}  // namespace headrace
