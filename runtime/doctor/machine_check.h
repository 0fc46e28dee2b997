// What the machine of one rank has and does: measured with headrace's own reading and threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace headrace {

struct GpuFacts {
  std::string name;
  std::string capability;                           // "9.0"
  std::string uuid;                                 // ranks that share it have the same
  bool is_too_old = false;                          // headrace does not use it
  uint64_t memory_free = 0, memory_total = 0;       // bytes
  double to_device_rate = 0, from_device_rate = 0;  // bytes per second, pinned memory
};

struct MachineFacts {
  std::string host, cpu;
  std::string version;  // of headrace
  std::string mpi;      // library and version
  std::string target;   // vector instructions
  std::string int8;     // those for --math int8
  int cores = 0;        // of the machine
  int usable_cores = 0;
  int quota = 0;                               // cores that its control group gives the time of
  bool bound = false;                          // to these cores, by a launcher or a cgroup
  int threads = 0;                             // that a run would compute with
  uint64_t memory_free = 0, memory_total = 0;  // bytes; free: that this process may still take
  double memory_rate = 0;                      // bytes per second, all threads reading

  // Those that can be used; `gpu_missing` says why there is none, or no other.
  std::vector<GpuFacts> gpus;
  std::string gpu_software, gpu_missing;
  // "NCCL 2.28.9", which passes hidden states between GPUs, or why there is none.
  std::string nccl, nccl_missing;

  std::string disk;         // directory; empty: none wanted
  std::string file_system;  // of the directory: "ext4", "tmpfs", or its number
  bool disk_shared = false, disk_in_memory = false;  // network file system; tmpfs
  uint64_t disk_free = 0;                            // bytes
  double disk_rate = 0, scattered_rate = 0;          // bytes per second, in 1 MiB and 64 KiB pieces
  std::string disk_error;                            // why the disk could not be measured
  std::string io;                                    // how it was read
};

struct MachineOptions {
  std::string disk;
  int threads = 0;  // 0: the cores this rank may use, over the ranks that share them
  std::string target = "auto";
  std::string cuda_module;  // file
};

// Takes about three seconds; calls `on()` between its parts, none of which takes long unless
// something hangs. What the disk refuses is a fact, not an error. Throws ResourceMissing for a
// target that this CPU lacks.
MachineFacts check_machine(const MachineOptions& options, int ranks_on_host,
                           const std::function<void()>& on);

}  // namespace headrace
