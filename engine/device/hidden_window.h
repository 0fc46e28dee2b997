// Hidden states that pass through places on a device: while one micro-batch computes the next ones
// come in, and the one before goes back.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/device/device.h"
#include "engine/ops/hidden_passage.h"

namespace headrace {

class HiddenWindow final : public HiddenPassage {
 public:
  // Places that a piece of `piece_rows` rows wants at least: one computes, one comes, one goes.
  static constexpr int64_t kLeastPlaces = 3;

  // `compute`: the stream of the ops; `room`: device memory that is divided into places for pieces
  // of `piece_rows` rows of `width` floats, kLeastPlaces at least. All must outlive it. Throws
  // ResourceMissing.
  HiddenWindow(Device& device, DeviceStream& compute, std::span<float> room, int64_t piece_rows,
               int64_t width);
  // Waits for what was queued.
  ~HiddenWindow() override;
  HiddenWindow(const HiddenWindow&) = delete;
  HiddenWindow& operator=(const HiddenWindow&) = delete;

  int64_t rows_at_once() const override { return std::ssize(room_) / width_; }
  void begin_sweep(float* host, std::vector<int64_t> pieces, int layers, bool are_made) override;
  float* acquire() override;
  void release() override;
  void end_sweep() override;

 private:
  // Rows of the step that are a piece.
  struct Piece {
    int64_t first_row, rows;
  };
  struct Place {
    std::unique_ptr<DeviceEvent> filled, emptied;
  };

  // Pieces are counted over the sweep.
  const Piece& piece(int64_t number) const { return pieces_[number % std::ssize(pieces_)]; }
  Place& place(int64_t number) { return places_[number % std::ssize(places_)]; }
  float* memory(int64_t number) {
    return room_.data() + number % std::ssize(places_) * piece_rows_ * width_;
  }
  std::span<float> at_home(int64_t number) const;
  void bring_ahead();
  void bring(int64_t number);

  Device& device_;
  DeviceStream& compute_;
  std::span<float> room_;
  int64_t piece_rows_, width_;
  std::vector<Place> places_;
  std::unique_ptr<DeviceEvent> used_;       // by the ops that were queued last
  std::unique_ptr<DeviceStream> in_, out_;  // go before the memory that they copy to
  float* host_ = nullptr;
  std::vector<Piece> pieces_;  // of a layer
  int64_t all_ = 0;            // of the sweep
  int64_t made_ = 0;           // of them, that do not come from the host
  int64_t next_ = 0, brought_ = 0;
};

}  // namespace headrace
