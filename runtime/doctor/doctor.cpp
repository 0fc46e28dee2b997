#include "runtime/doctor/doctor.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <set>

#include "engine/memory/budget.h"
#include "runtime/device_choice.h"
#include "runtime/json_bytes.h"

namespace headrace {
namespace {

// Hidden states of a full step of a 7B model: what a link carries at a time.
constexpr double kStepBytes = 512.0 * 4096 * sizeof(float);
constexpr double kSlowStep = 0.1;       // seconds that such a step may take on a link
constexpr double kSlowLatency = 0.002;  // seconds
constexpr double kSlowDisk = 200e6;     // bytes per second
constexpr double kUneven = 1.5;
constexpr double kSlowGpuLink = 10e9;  // bytes per second; PCIe 4.0 x16 does 25e9
constexpr double kFreeOfGpu = 0.75;    // of its memory, with nothing else on it and some ranks

}  // namespace

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(GpuFacts, name, capability, uuid, is_too_old, memory_free,
                                   memory_total, to_device_rate, from_device_rate)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(MachineFacts, host, cpu, version, mpi, target, int8, cores,
                                   usable_cores, quota, bound, threads, memory_free, memory_total,
                                   memory_rate, gpus, gpu_software, gpu_missing, nccl, nccl_missing,
                                   disk, file_system, disk_shared, disk_in_memory, disk_free,
                                   disk_rate, scattered_rate, disk_error, io)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(LinkFacts, latency_s, rate)

std::optional<Examination> examine(const MachineOptions& options, const Wires& wires) {
  Communicator& ranks = wires.communicator;
  gather(ranks, {});  // all begin together
  broadcast(ranks, {});
  // A rank whose disk or driver hangs is missed after the peer timeout. The communicator's own
  // thread may look at the number after this function's end.
  const auto parts = std::make_shared<std::atomic<uint64_t>>(0);
  ranks.watch_progress([parts] { return parts->load(); });
  MachineFacts mine = check_machine(options, ranks.ranks_on_host(), [&] { ++*parts; });
  mine.host = ranks.host(ranks.rank());
  mine.mpi = ranks.library();
  const std::vector<Bytes> machines = gather(ranks, to_bytes(mine));
  const auto link = check_links(ranks);
  const std::vector<Bytes> links = gather(ranks, to_bytes(link.value_or(LinkFacts{})));
  if (!wires.is_first()) return std::nullopt;
  Examination found;
  for (const Bytes& machine : machines) {
    found.ranks.push_back(from_bytes(machine).get<MachineFacts>());
  }
  for (const Bytes& one : links) found.links.push_back(from_bytes(one).get<LinkFacts>());
  found.links.pop_back();
  return found;
}

namespace {

std::string rate(double bytes_per_s) {
  return bytes_per_s < 1e9 ? fmt::format("{:.0f} MB/s", bytes_per_s / 1e6)
                           : fmt::format("{:.1f} GB/s", bytes_per_s / 1e9);
}

std::string disk_line(const MachineFacts& m) {
  if (m.disk.empty()) return "none";
  if (!m.disk_error.empty()) return m.disk + ": not usable";
  return fmt::format("{} ({}): {} free, read at {}, in small pieces at {}, through {}", m.disk,
                     m.file_system, format_bytes(m.disk_free), rate(m.disk_rate),
                     rate(m.scattered_rate), m.io);
}

std::string gpu_line(const GpuFacts& gpu, const MachineFacts& m) {
  return fmt::format("{} ({}): {} free of {}, {} to it and {} from it, {}, {}", gpu.name,
                     gpu.capability, format_bytes(gpu.memory_free), format_bytes(gpu.memory_total),
                     rate(gpu.to_device_rate), rate(gpu.from_device_rate), m.gpu_software,
                     m.nccl.empty() ? "no NCCL: " + m.nccl_missing : m.nccl);
}

std::string describe(const MachineFacts& m, size_t rank) {
  std::string text = fmt::format("rank {} on {}\n", rank, m.host);
  const auto line = [&text](const char* name, const std::string& value) {
    text += fmt::format("  {:<9}{}\n", name, value);
  };
  line("cpu", fmt::format("{}, {} ({} for int8), {} of {} cores to use{}, {} thread{}", m.cpu,
                          m.target, m.int8, m.usable_cores, m.cores, m.bound ? " (bound)" : "",
                          m.threads, m.threads == 1 ? "" : "s"));
  line("memory", fmt::format("{} free of {}, read at {}", format_bytes(m.memory_free),
                             format_bytes(m.memory_total), rate(m.memory_rate)));
  line("disk", disk_line(m));
  for (const GpuFacts& gpu : m.gpus) line("gpu", gpu_line(gpu, m));
  if (!m.gpu_missing.empty()) {
    line("gpu", (m.gpus.empty() ? "none to use: " : "no other: ") + m.gpu_missing);
  }
  line("mpi", m.mpi);
  line("headrace", m.version);
  return text;
}

// "rank 1 on node2"
std::string name(const Examination& found, size_t rank) {
  return fmt::format("rank {} on {}", rank, found.ranks[rank].host);
}

void warn_of_gpu(const std::string& who, const GpuFacts& gpu, std::vector<std::string>& all) {
  if (gpu.is_too_old) {
    all.push_back(fmt::format(
        "{} has {} of compute capability {}, headrace uses those of {}.0 and newer: it will "
        "compute on its CPU",
        who, gpu.name, gpu.capability, kLeastComputeCapability));
    return;
  }
  const auto free = static_cast<double>(gpu.memory_free);
  if (free < kFreeOfGpu * static_cast<double>(gpu.memory_total)) {
    all.push_back(fmt::format(
        "{} has {} free of the {} of its {}: end what else runs there (nvidia-smi shows it)", who,
        format_bytes(gpu.memory_free), format_bytes(gpu.memory_total), gpu.name));
  }
  if (const double slower = std::min(gpu.to_device_rate, gpu.from_device_rate);
      slower < kSlowGpuLink) {
    all.push_back(fmt::format(
        "{} has a link to its {} of {}: what has no room there passes at that rate; see that the "
        "card has all its PCIe lanes (nvidia-smi -q), and no other rank measured at the same time",
        who, gpu.name, rate(slower)));
  }
}

void warn_of_machine(const Examination& found, size_t r, std::vector<std::string>& all) {
  const MachineFacts& m = found.ranks[r];
  const std::string who = name(found, r);
  if (m.version != found.ranks[0].version) {
    all.push_back(fmt::format("{} has headrace {}, rank 0 has {}: install the same on every node",
                              who, m.version, found.ranks[0].version));
  }
  if (m.mpi != found.ranks[0].mpi) {
    all.push_back(fmt::format("{} has {}, rank 0 has {}: install the same on every node", who,
                              m.mpi, found.ranks[0].mpi));
  }
  if (m.target == "scalar") {
    all.push_back(who +
                  " computes without vector instructions, many times slower than with AVX2: "
                  "leave it out, or give it few layers with --split");
  }
  for (const GpuFacts& gpu : m.gpus) warn_of_gpu(who, gpu, all);
  if (!m.disk_error.empty()) {
    all.push_back(who + ": " + m.disk_error);
    return;
  }
  if (m.disk_in_memory) {
    all.push_back(
        fmt::format("{}: {} is in memory ({}), so what is put there takes the memory that "
                    "it should spare: give --disk on a local SSD",
                    who, m.disk, m.file_system));
  }
  if (m.disk_shared) {
    all.push_back(
        fmt::format("{}: {} is a network file system ({}), which all nodes share: give "
                    "--disk on a local SSD",
                    who, m.disk, m.file_system));
  }
  if (m.disk_rate > 0 && m.disk_rate < kSlowDisk) {
    all.push_back(
        fmt::format("{} reads its disk at {}: a model that does not fit in memory will "
                    "run at that speed; give --disk on an SSD, or use more ranks",
                    who, rate(m.disk_rate)));
  }
  if (m.io.find("threads") != std::string::npos) {
    all.push_back(
        fmt::format("{} reads through {}: allow io_uring (sysctl kernel.io_uring_disabled, "
                    "or the container's seccomp profile) to spare a little CPU time",
                    who, m.io));
  }
}

// Ranks of each host.
std::map<std::string, std::vector<size_t>> by_host(const Examination& found) {
  std::map<std::string, std::vector<size_t>> hosts;
  for (size_t r = 0; r < found.ranks.size(); ++r) hosts[found.ranks[r].host].push_back(r);
  return hosts;
}

void warn_of_cores(const Examination& found, std::vector<std::string>& all) {
  for (const auto& [host, ranks] : by_host(found)) {
    int threads = 0;
    for (const size_t r : ranks) threads += found.ranks[r].threads;
    const int cores = found.ranks[ranks.front()].cores;
    if (threads > cores) {
      all.push_back(fmt::format(
          "{} computes with {} threads on {} cores: give --threads {} or fewer "
          "ranks",
          host, threads, cores, std::max<size_t>(1, static_cast<size_t>(cores) / ranks.size())));
    } else if (threads < cores) {
      const MachineFacts& first = found.ranks[ranks.front()];
      const char* const cure =
          first.bound ? "start with mpirun --bind-to none, or srun --cpus-per-task, or more ranks"
          : first.quota <= threads
              ? "its control group or container has no more CPU time (cpu.max); "
                "start it with more"
              : "give more --threads or ranks";
      all.push_back(
          fmt::format("{} computes with {} of its {} cores: {}", host, threads, cores, cure));
    }
  }
}

// Ranks of one machine share its memory, as it happens more or less evenly.
void warn_of_uneven_machines(const Examination& found, std::vector<std::string>& all) {
  size_t slow = 0, fast = 0;
  const auto ratio = [&](size_t a, size_t b) {
    return found.ranks[b].memory_rate / found.ranks[a].memory_rate;
  };
  for (size_t a = 0; a < found.ranks.size(); ++a) {
    for (size_t b = 0; b < found.ranks.size(); ++b) {
      if (found.ranks[a].host == found.ranks[b].host || ratio(a, b) <= ratio(slow, fast)) continue;
      slow = a;
      fast = b;
    }
  }
  if (ratio(slow, fast) < kUneven) return;
  all.push_back(fmt::format(
      "{} reads memory at {}, {} at {}: layers are shared out as if all ranks were equal; give the "
      "slower one fewer with --split",
      name(found, slow), rate(found.ranks[slow].memory_rate), name(found, fast),
      rate(found.ranks[fast].memory_rate)));
}

// Of hosts that have some.
void warn_of_few_gpus(const Examination& found, std::vector<std::string>& all) {
  for (const auto& [host, ranks] : by_host(found)) {
    std::set<std::string> gpus;
    for (const size_t r : ranks) {
      for (const GpuFacts& gpu : found.ranks[r].gpus) {
        if (!gpu.is_too_old) gpus.insert(gpu.uuid);
      }
    }
    if (gpus.empty() || gpus.size() >= ranks.size()) continue;
    all.push_back(fmt::format(
        "{} has {} GPU{} for {} ranks, which share memory and time: start as many ranks as GPUs "
        "(mpirun --map-by ppr:{}:node), or give some --device cpu",
        host, gpus.size(), gpus.size() == 1 ? "" : "s", ranks.size(), gpus.size()));
  }
}

// Of neighbours that both have a GPU.
void warn_of_nccl(const Examination& found, std::vector<std::string>& all) {
  for (size_t r = 0; r + 1 < found.ranks.size(); ++r) {
    const MachineFacts &from = found.ranks[r], &to = found.ranks[r + 1];
    if (from.gpus.empty() || to.gpus.empty() || from.nccl == to.nccl) continue;
    const auto version = [](const MachineFacts& m) { return m.nccl.empty() ? "no NCCL" : m.nccl; };
    all.push_back(
        fmt::format("{} has {}, {} has {}: hidden states between their GPUs go through host memory "
                    "and MPI; install the same on every node",
                    name(found, r), version(from), name(found, r + 1), version(to)));
  }
}

void warn_of_links(const Examination& found, std::vector<std::string>& all) {
  for (size_t r = 0; r < found.links.size(); ++r) {
    const LinkFacts& link = found.links[r];
    const double step = link.latency_s + kStepBytes / link.rate;
    if (link.latency_s < kSlowLatency && step < kSlowStep) continue;
    all.push_back(fmt::format(
        "{} to {}: a message takes {:.2f} ms, and hidden states go at {}, {:.0f} ms for a step of "
        "a 7B model: see which network MPI uses (mpirun --mca btl_tcp_if_include eth1)",
        name(found, r), name(found, r + 1), 1e3 * link.latency_s, rate(link.rate), 1e3 * step));
  }
}

}  // namespace

std::string describe(const Examination& found) {
  std::string text;
  for (size_t r = 0; r < found.ranks.size(); ++r) text += describe(found.ranks[r], r);
  for (size_t r = 0; r < found.links.size(); ++r) {
    const LinkFacts& link = found.links[r];
    text += fmt::format("link from rank {} to rank {}: {:.0f} us for a message, {}\n", r, r + 1,
                        1e6 * link.latency_s, rate(link.rate));
  }
  return text;
}

std::vector<std::string> warnings(const Examination& found) {
  std::vector<std::string> all;
  for (size_t r = 0; r < found.ranks.size(); ++r) warn_of_machine(found, r, all);
  warn_of_cores(found, all);
  warn_of_uneven_machines(found, all);
  warn_of_few_gpus(found, all);
  warn_of_nccl(found, all);
  warn_of_links(found, all);
  return all;
}

}  // namespace headrace
