#include "engine/device/hidden_window.h"

#include <algorithm>
#include <exception>
#include <stdexcept>

namespace headrace {

HiddenWindow::HiddenWindow(Device& device, DeviceStream& compute, std::span<float> room,
                           int64_t piece_rows, int64_t width)
    : device_(device),
      compute_(compute),
      room_(room),
      piece_rows_(piece_rows),
      width_(width),
      used_(device.make_event()),
      in_(device.make_stream(Track::kHiddenToGpu)),
      out_(device.make_stream(Track::kHiddenToGpu)) {
  const int64_t places = std::ssize(room) / (piece_rows * width);
  if (places < kLeastPlaces) throw std::logic_error("HiddenWindow: there is too little room");
  for (int64_t i = 0; i < places; ++i) {
    places_.push_back({device.make_event(), device.make_event()});
  }
}

HiddenWindow::~HiddenWindow() {
  try {
    in_->synchronize();
    out_->synchronize();
    compute_.synchronize();
  } catch (const std::exception&) {
    // What failed was said to who waited for it, and nothing is left that runs.
  }
}

std::span<float> HiddenWindow::at_home(int64_t number) const {
  const Piece& p = piece(number);
  return {host_ + p.first_row * width_, static_cast<size_t>(p.rows * width_)};
}

void HiddenWindow::begin_sweep(float* host, std::vector<int64_t> pieces, int layers,
                               bool are_made) {
  host_ = host;
  pieces_.clear();
  int64_t row = 0;
  for (const int64_t rows : pieces) {
    if (rows > piece_rows_) throw std::logic_error("HiddenWindow: a piece is too large");
    pieces_.push_back({row, rows});
    row += rows;
  }
  made_ = are_made ? std::ssize(pieces_) : 0;
  all_ = std::ssize(pieces_) * layers;
  next_ = brought_ = 0;
  // What the room was used for otherwise.
  device_.record(compute_, *used_);
  device_.wait(*in_, *used_);
  bring_ahead();
}

// A piece comes when the one that had its place has gone, and when it is at home itself.
void HiddenWindow::bring_ahead() {
  const int64_t ahead = std::min(std::ssize(places_), std::ssize(pieces_));
  while (brought_ < all_ && brought_ < next_ + ahead) {
    if (brought_ >= ahead) device_.wait(*in_, *place(brought_ - ahead).emptied);
    bring(brought_++);
  }
}

void HiddenWindow::bring(int64_t number) {
  if (number >= made_) {
    device_.copy_in(*in_, reinterpret_cast<std::byte*>(memory(number)),
                    std::as_bytes(at_home(number)));
  }
  device_.record(*in_, *place(number).filled);
}

float* HiddenWindow::acquire() {
  if (next_ >= brought_) throw std::logic_error("HiddenWindow: there is no such piece");
  device_.wait(compute_, *place(next_).filled);
  return memory(next_);
}

void HiddenWindow::release() {
  device_.record(compute_, *used_);
  device_.wait(*out_, *used_);
  device_.copy_out(*out_, std::as_writable_bytes(at_home(next_)),
                   reinterpret_cast<const std::byte*>(memory(next_)));
  device_.record(*out_, *place(next_).emptied);
  ++next_;
  bring_ahead();
}

void HiddenWindow::end_sweep() {
  if (next_ < all_) throw std::logic_error("HiddenWindow: a sweep ends before its last piece");
  compute_.synchronize();  // where there are signs of going on
  out_->synchronize();
}

}  // namespace headrace
