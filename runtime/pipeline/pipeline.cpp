#include "runtime/pipeline/pipeline.h"

namespace headrace {
namespace {

size_t hidden_bytes(const StepMessage& step, int64_t d_model) {
  return static_cast<size_t>(step.rows() * d_model) * sizeof(float);
}

// Runs the step on the buffer and hands it on: hidden states to the next stage or sampled tokens to
// the caller.
std::optional<StepResult> compute(Stage& stage, const StepMessage& step, int64_t d_model,
                                  ActivationLink::HiddenBuffer buffer, ActivationLink& link) {
  std::optional<StepResult> result = stage.run(step, reinterpret_cast<float*>(buffer.data()));
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
  while (!coordinator.finished()) {
    if (interrupted) coordinator.stop();
    if (!wires.is_last()) {
      while (auto result = ranks.try_receive(last, Channel::kTokens)) {
        coordinator.accept(decode_step_result(*result));
      }
    }
    if (const std::optional<StepMessage> step = coordinator.next_step()) {
      if (!wires.is_last()) ranks.send(next, Channel::kStep, encode(*step));
      const auto result = compute(stage, *step, d_model, wires.link.take(), wires.link);
      if (result) coordinator.accept(*result);
    } else if (coordinator.steps_under_way()) {
      coordinator.accept(decode_step_result(ranks.receive(last, Channel::kTokens)));
    }
    after_step();
  }
  StepMessage over;
  over.stop = true;
  if (!wires.is_last()) ranks.send(next, Channel::kStep, encode(over));
}

void run_stage(Stage& stage, int64_t d_model, const Wires& wires) {
  Communicator& ranks = wires.communicator;
  for (;;) {
    const Bytes message = ranks.receive(ranks.rank() - 1, Channel::kStep);
    const StepMessage step = decode_step_message(message);
    if (!wires.is_last()) ranks.send(ranks.rank() + 1, Channel::kStep, message);
    if (step.stop) return;
    const auto buffer = wires.link.receive(hidden_bytes(step, d_model));
    const auto result = compute(stage, step, d_model, buffer, wires.link);
    if (result) ranks.send(0, Channel::kTokens, encode(*result));
  }
}

}  // namespace headrace
