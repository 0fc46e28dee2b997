#include "runtime/doctor/machine_check.h"

#include <spdlog/fmt/fmt.h>
#include <sys/vfs.h>

#include <algorithm>
#include <vector>

#include "comm/device_wire.h"
#include "comm/error.h"
#include "engine/device/device_module.h"
#include "engine/error.h"
#include "engine/io/directory.h"
#include "engine/io/io_queue.h"
#include "engine/memory/budget.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/thread_pool.h"
#include "headrace/version.h"
#include "runtime/device_choice.h"
#include "runtime/plan/host_memory.h"
#include "runtime/plan/rates.h"
#include "runtime/report/host_facts.h"

namespace headrace {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kMemorySample = 256 * kMiB;  // more than caches hold, of most machines
constexpr uint64_t kDiskSample = 64 * kMiB;
constexpr int kReads = 16;  // under way, as measure_read has them

struct FileSystem {
  uint32_t magic;  // statfs(2)
  const char* name;
  bool shared, in_memory;
};
constexpr FileSystem kFileSystems[] = {
    {0xEF53, "ext4", false, false},        {0x58465342, "xfs", false, false},
    {0x9123683E, "btrfs", false, false},   {0x2FC12FC1, "zfs", false, false},
    {0x794C7630, "overlay", false, false}, {0x01021994, "tmpfs", false, true},
    {0x858458F6, "ramfs", false, true},    {0x6969, "nfs", true, false},
    {0x0BD00BD0, "lustre", true, false},   {0x47504653, "gpfs", true, false},
    {0x19830326, "beegfs", true, false},   {0x00C36400, "ceph", true, false},
    {0xFF534D42, "cifs", true, false},     {0xFE534D42, "smb2", true, false},
    {0x65735546, "fuse", true, false},     {0x01021997, "9p", true, false},
};

void find_file_system(MachineFacts& facts) {
  struct statfs found = {};
  if (statfs(facts.disk.c_str(), &found) != 0) return;
  const auto magic = static_cast<uint32_t>(found.f_type);
  facts.file_system = fmt::format("file system {:#x}", magic);
  for (const FileSystem& known : kFileSystems) {
    if (known.magic != magic) continue;
    facts.file_system = known.name;
    facts.disk_shared = known.shared;
    facts.disk_in_memory = known.in_memory;
  }
}

void check_disk(MachineFacts& facts, MemoryBudget& budget, const std::function<void()>& on) {
  facts.io = make_io_queue(kReads)->description();
  try {
    make_writable_directory(facts.disk);
    find_file_system(facts);
    facts.disk_free = free_bytes(facts.disk);
    const auto probe = make_probe(facts.disk, kDiskSample, budget);
    on();
    facts.disk_rate = measure_read(*probe, budget);
    on();
    facts.scattered_rate = measure_read(*probe, budget, {.part = 64 << 10, .scattered = true});
  } catch (const IoError& e) {
    facts.disk_error = e.what();
  }
}

void check_gpus(const std::string& file, MachineFacts& facts) {
  try {
    const auto module = open_device_module(file);
    facts.gpu_software = module->software();
    const int devices = module->count();
    for (int device = 0; device < devices; ++device) {
      const DeviceFacts found = module->facts(device);
      const DeviceLinkRates link = module->measure_link(device);
      facts.gpus.push_back({found.name, fmt::format("{}.{}", found.major, found.minor),
                            found.bus + " " + found.uuid, found.major < kLeastComputeCapability,
                            found.memory_free, found.memory_total, link.to_device,
                            link.from_device});
    }
  } catch (const std::runtime_error& e) {  // missing, or out of memory
    facts.gpu_missing = e.what();
  }
  if (facts.gpus.empty()) return;
  try {
    facts.nccl = open_device_wires(file)->version();
  } catch (const CommError& e) {
    facts.nccl_missing = e.what();
  }
}

}  // namespace

MachineFacts check_machine(const MachineOptions& options, int ranks_on_host,
                           const std::function<void()>& on) {
  const Cores cores = cores_of_this_process();
  MachineFacts facts;
  facts.cpu = cpu_model();
  facts.version = HEADRACE_VERSION;
  facts.target = kernels(options.target).name;
  facts.int8 = kernels(options.target).int8.name;
  facts.cores = cores.machine;
  facts.usable_cores = std::min(cores.usable, cores.quota);
  facts.quota = cores.quota;
  facts.bound = cores.bound();
  facts.threads = options.threads > 0 ? options.threads : cores.for_one_of(ranks_on_host);
  facts.memory_free = available_host_memory();
  facts.memory_total = total_memory();
  facts.disk = options.disk;
  MemoryBudget budget("host memory", default_host_memory(facts.memory_free, ranks_on_host));
  ThreadPool threads(facts.threads);
  facts.memory_rate = measure_memory(threads, budget, kMemorySample);
  on();
  check_gpus(options.cuda_module, facts);
  on();
  if (!options.disk.empty()) check_disk(facts, budget, on);
  return facts;
}

}  // namespace headrace
