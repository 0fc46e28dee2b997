// Events of a device that are used again and again.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/device/device.h"

namespace headrace {

class EventPool {
 public:
  explicit EventPool(Device& device) : device_(device) {}

  // At the place after all that is queued in the stream.
  std::unique_ptr<DeviceEvent> record(DeviceStream& stream) {
    if (events_.empty()) events_.push_back(device_.make_event());
    auto event = std::move(events_.back());
    events_.pop_back();
    device_.record(stream, *event);
    return event;
  }
  void give_back(std::unique_ptr<DeviceEvent> event) { events_.push_back(std::move(event)); }

 private:
  Device& device_;
  std::vector<std::unique_ptr<DeviceEvent>> events_;  // not in use
};

}  // namespace headrace
