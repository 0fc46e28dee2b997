#include "tests/device/fake_nccl.h"

#include <nccl.h>

#include <cstring>
#include <map>
#include <memory>

using headrace::test::FakeNccl;
using headrace::test::FakeStream;

namespace {

constexpr int kLooks = 3;  // until what was begun has been handed over

FakeNccl state;
int next_id = 1;

// What has come to a transfer's place in a stream, at either end.
struct Meeting {
  std::deque<std::pair<std::byte*, size_t>> ends[2];
};
std::map<int, std::shared_ptr<Meeting>> meetings;  // by id

}  // namespace

struct ncclComm {
  int rank = 0;
  std::shared_ptr<Meeting> meeting;
  int looks = kLooks;  // left
  ncclResult_t error = ncclSuccess;
  bool is_aborted = false, is_finalized = false;
  std::function<void()> hand_over;
};

namespace {

ncclResult_t misused() {
  ++state.misused;
  return ncclInvalidUsage;
}

ncclResult_t begin(ncclComm_t comm, std::function<void()> hand_over) {
  if (comm->looks > 0 || comm->is_finalized) return misused();
  comm->looks = kLooks;
  comm->hand_over = std::move(hand_over);
  return ncclInProgress;
}

// The transfer is done when both ends have come to it.
ncclResult_t transfer(ncclComm_t comm, std::byte* memory, size_t bytes, cudaStream_t stream) {
  auto* const queue = reinterpret_cast<FakeStream*>(stream);
  return begin(comm, [=] {
    comm->error = static_cast<ncclResult_t>(state.fail_transfer);
    auto has_come = std::make_shared<bool>(false);
    queue->work.emplace_back([=, rank = comm->rank, meeting = comm->meeting] {
      auto &own = meeting->ends[rank], &other = meeting->ends[1 - rank];
      if (!*has_come) {
        own.emplace_back(memory, bytes);
        *has_come = true;
      }
      if (rank == 0) return own.empty();  // the receiver has taken it
      if (other.empty()) return false;
      std::memcpy(memory, other.front().first, bytes);
      other.pop_front();
      own.pop_front();
      return true;
    });
  });
}

}  // namespace

extern "C" {

FakeNccl* headrace_fake_nccl() { return &state; }

ncclResult_t ncclGetVersion(int* version) {
  *version = FAKE_NCCL_VERSION;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 0, sizeof *id);
  std::memcpy(id, &next_id, sizeof next_id);
  ++next_id;
  return static_cast<ncclResult_t>(state.fail_id);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (ranks != 2 || config->blocking != 0 || config->maxCTAs > 4) return misused();
  int number = 0;
  std::memcpy(&number, &id, sizeof number);
  auto& meeting = meetings[number];
  if (!meeting) meeting = std::make_shared<Meeting>();
  *comm = new ncclComm;
  (*comm)->rank = rank;
  (*comm)->meeting = meeting;
  (*comm)->hand_over = [made = *comm] { made->error = static_cast<ncclResult_t>(state.fail_init); };
  ++state.alive;
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (comm->looks > 0 && --comm->looks == 0 && comm->hand_over) comm->hand_over();
  *error = comm->looks > 0 ? ncclInProgress : comm->error;
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* memory, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  if (comm->rank != 0 || peer != 1 || type != ncclInt8) return misused();
  return transfer(comm, static_cast<std::byte*>(const_cast<void*>(memory)), count, stream);
}

ncclResult_t ncclRecv(void* memory, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  if (comm->rank != 1 || peer != 0 || type != ncclInt8) return misused();
  return transfer(comm, static_cast<std::byte*>(memory), count, stream);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const ncclResult_t result = begin(comm, [] {});
  comm->is_finalized = true;
  return result;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm->is_finalized || comm->looks > 0) return misused();
  delete comm;
  --state.alive;
  ++state.destroyed;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  delete comm;
  --state.alive;
  ++state.aborted;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t code) {
  return code == ncclRemoteError ? "remote process exited" : "some error";
}
const char* ncclGetLastError(ncclComm_t) { return "no interface is named nosuch0"; }
}
