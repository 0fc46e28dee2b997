#include "comm/communicator.h"

namespace headrace {

int Communicator::place_on_host() const {
  int before = 0;
  for (int r = 0; r < rank(); ++r) before += host(r) == host(rank());
  return before;
}

int Communicator::ranks_on_host() const {
  int count = 0;
  for (int r = 0; r < size(); ++r) count += host(r) == host(rank());
  return count;
}

std::vector<Bytes> gather(Communicator& communicator, Bytes message) {
  if (communicator.rank() != 0) {
    communicator.send(0, Channel::kSetup, std::move(message));
    return {};
  }
  std::vector<Bytes> all;
  all.push_back(std::move(message));
  for (int r = 1; r < communicator.size(); ++r)
    all.push_back(communicator.receive(r, Channel::kSetup));
  return all;
}

Bytes broadcast(Communicator& communicator, Bytes message) {
  if (communicator.rank() != 0) return communicator.receive(0, Channel::kSetup);
  for (int r = 1; r < communicator.size(); ++r) communicator.send(r, Channel::kSetup, message);
  return message;
}

}  // namespace headrace
