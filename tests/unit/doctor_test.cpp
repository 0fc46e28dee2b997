// What the doctor says of machines and links, and that neighbours measure their link.
#include "runtime/doctor/doctor.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "comm/local_transport.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

MachineFacts machine(const std::string& host) {
  MachineFacts m;
  m.host = host;
  m.cpu = "a CPU";
  m.version = "1.0 (abc)";
  m.mpi = "Open MPI v4.1.4";
  m.target = m.int8 = "avx2";
  m.cores = m.usable_cores = m.quota = m.threads = 8;
  m.memory_free = uint64_t{12} << 30;
  m.memory_total = uint64_t{16} << 30;
  m.memory_rate = 20e9;
  m.disk = "/scratch";
  m.file_system = "ext4";
  m.disk_free = uint64_t{100} << 30;
  m.disk_rate = 1.5e9;
  m.scattered_rate = 700e6;
  m.io = "io_uring";
  return m;
}

GpuFacts gpu(const std::string& uuid) {
  return {"a GPU", "9.0", uuid, false, uint64_t{79} << 30, uint64_t{80} << 30, 54e9, 55e9};
}

Examination two_nodes() { return {{machine("node1"), machine("node2")}, {{50e-6, 1.1e9}}}; }

// The only warning, or all of them.
std::string warning(const Examination& found) {
  std::string text;
  for (const std::string& one : warnings(found)) text += one + "\n";
  return text;
}

void expect_words(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words)
    EXPECT_NE(text.find(word), text.npos) << word << "\n" << text;
}

TEST(Doctor, DescribesEveryRankAndLink) {
  const std::string text = describe(two_nodes());
  expect_words(text, {"rank 0 on node1", "rank 1 on node2", "8 of 8 cores", "8 threads",
                      "12.0 GiB free of 16.0 GiB", "20.0 GB/s", "/scratch (ext4)", "100.0 GiB free",
                      "1.5 GB/s", "700 MB/s", "io_uring", "Open MPI v4.1.4",
                      "link from rank 0 to rank 1: 50 us for a message, 1.1 GB/s"});
}

TEST(Doctor, NamesGpusOrWhyThereIsNone) {
  Examination found = two_nodes();
  found.ranks[0].gpu_missing = "there is no driver";
  found.ranks[1].gpu_software = "CUDA 13.0";
  found.ranks[1].nccl = "NCCL 2.28.9";
  found.ranks[1].gpus.push_back(gpu("1"));
  expect_words(describe(found), {"none to use: there is no driver",
                                 "a GPU (9.0): 79.0 GiB free of 80.0 GiB, 54.0 GB/s to it and "
                                 "55.0 GB/s from it, CUDA 13.0, NCCL 2.28.9"});
  found.ranks[1].nccl = "";
  found.ranks[1].nccl_missing = "there is no library";
  expect_words(describe(found), {"CUDA 13.0, no NCCL: there is no library"});
  found.ranks[1].gpu_missing = "out of memory";
  expect_words(describe(found), {"a GPU (9.0)", "no other: out of memory"});
}

TEST(Doctor, HasNothingToSayOfAGoodCluster) {
  Examination good = two_nodes();
  EXPECT_EQ(warning(good), "");
  // Two ranks that see one GPU each, or both.
  good.ranks[1].host = "node1";
  for (MachineFacts& m : good.ranks) m.threads = 4;
  good.ranks[0].gpus = {gpu("1")};
  good.ranks[1].gpus = {gpu("2")};
  EXPECT_EQ(warning(good), "");
  good.ranks[0].gpus = good.ranks[1].gpus = {gpu("1"), gpu("2")};
  EXPECT_EQ(warning(good), "");
}

TEST(Doctor, OneWarningForEachFault) {
  struct Case {
    const char* name;
    void (*spoil)(Examination&);
    std::vector<std::string> words;
  };
  const Case cases[] = {
      {"version",
       [](Examination& e) { e.ranks[1].version = "1.1"; },
       {"rank 1 on node2 has headrace 1.1", "1.0 (abc)", "install the same"}},
      {"mpi", [](Examination& e) { e.ranks[1].mpi = "MPICH"; }, {"MPICH", "Open MPI v4.1.4"}},
      {"scalar", [](Examination& e) { e.ranks[0].target = "scalar"; }, {"rank 0", "--split"}},
      {"bound",
       [](Examination& e) {
         e.ranks[1].usable_cores = e.ranks[1].threads = 1;
         e.ranks[1].bound = true;
       },
       {"node2 computes with 1 of its 8 cores", "--bind-to none"}},
      {"few threads",
       [](Examination& e) { e.ranks[1].threads = 2; },
       {"node2 computes with 2 of its 8 cores", "--threads"}},
      {"quota",
       [](Examination& e) { e.ranks[1].usable_cores = e.ranks[1].quota = e.ranks[1].threads = 2; },
       {"node2 computes with 2 of its 8 cores", "cpu.max"}},
      {"many threads",
       [](Examination& e) { e.ranks[1].threads = 16; },
       {"node2", "16 threads on 8 cores", "--threads 8"}},
      {"tmpfs",
       [](Examination& e) {
         e.ranks[1].file_system = "tmpfs";
         e.ranks[1].disk_in_memory = true;
       },
       {"rank 1", "/scratch is in memory", "--disk"}},
      {"nfs",
       [](Examination& e) {
         e.ranks[1].file_system = "nfs";
         e.ranks[1].disk_shared = true;
       },
       {"rank 1", "network file system (nfs)", "--disk"}},
      {"slow disk", [](Examination& e) { e.ranks[0].disk_rate = 150e6; }, {"150 MB/s"}},
      {"disk error",
       [](Examination& e) { e.ranks[0].disk_error = "/scratch: no permission"; },
       {"rank 0 on node1", "no permission"}},
      {"no io_uring",
       [](Examination& e) { e.ranks[0].io = "8 threads (io_uring: no)"; },
       {"8 threads (io_uring: no)", "kernel.io_uring_disabled"}},
      {"uneven",
       [](Examination& e) { e.ranks[1].memory_rate = 10e9; },
       {"rank 1 on node2 reads memory at 10.0 GB/s", "rank 0 on node1 at 20.0 GB/s", "--split"}},
      {"nccl",
       [](Examination& e) {
         for (MachineFacts& m : e.ranks) m.gpus.push_back(gpu(m.host));
         e.ranks[0].nccl = "NCCL 2.28.9";
         e.ranks[1].nccl = "NCCL 2.27.3";
       },
       {"node1 has NCCL 2.28.9", "node2 has NCCL 2.27.3", "install the same"}},
      {"old gpu",
       [](Examination& e) {
         e.ranks[1].gpus = {gpu("1")};
         e.ranks[1].gpus[0].is_too_old = true;
         e.ranks[1].gpus[0].capability = "7.5";
       },
       {"rank 1 on node2 has a GPU of compute capability 7.5", "8.0 and newer", "its CPU"}},
      {"busy gpu",
       [](Examination& e) {
         e.ranks[1].gpus = {gpu("1")};
         e.ranks[1].gpus[0].memory_free = uint64_t{20} << 30;
       },
       {"rank 1 on node2 has 20.0 GiB free of the 80.0 GiB", "nvidia-smi"}},
      {"slow gpu link",
       [](Examination& e) {
         e.ranks[1].gpus = {gpu("1")};
         e.ranks[1].gpus[0].from_device_rate = 3e9;
       },
       {"rank 1 on node2", "3.0 GB/s", "PCIe lanes"}},
      {"few gpus",
       [](Examination& e) {
         e.ranks[1].host = "node1";
         for (MachineFacts& m : e.ranks) {
           m.gpus = {gpu("1")};
           m.threads = 4;
         }
       },
       {"node1 has 1 GPU for 2 ranks", "ppr:1:node"}},
      {"no nccl",
       [](Examination& e) {
         for (MachineFacts& m : e.ranks) m.gpus.push_back(gpu(m.host));
         e.ranks[1].nccl = "NCCL 2.28.9";
       },
       {"node1 has no NCCL", "node2 has NCCL 2.28.9", "install the same"}},
      {"slow link",
       [](Examination& e) { e.links[0].rate = 12e6; },
       {"rank 0 on node1 to rank 1 on node2", "12 MB/s", "btl_tcp_if_include"}},
      {"late link", [](Examination& e) { e.links[0].latency_s = 0.005; }, {"5.00 ms"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Examination found = two_nodes();
    c.spoil(found);
    EXPECT_EQ(warnings(found).size(), 1u) << warning(found);
    expect_words(warning(found), c.words);
  }
}

TEST(Doctor, RanksOfOneMachineAreNotUneven) {
  Examination found = two_nodes();
  found.ranks[1].host = "node1";
  for (MachineFacts& m : found.ranks) m.threads = 4;
  found.ranks[1].memory_rate = 2e9;
  EXPECT_EQ(warning(found), "");
  found.ranks.push_back(machine("node2"));
  found.links.push_back(found.links.front());
  found.ranks[2].memory_rate = 12e9;
  expect_words(warning(found), {"rank 1 on node1 reads memory at 2.0 GB/s", "rank 2 on node2"});
}

TEST(Doctor, RanksOfOneMachineShareItsCores) {
  Examination found = two_nodes();
  for (MachineFacts& m : found.ranks) {
    m.host = "node1";
    m.threads = 4;
  }
  EXPECT_EQ(warning(found), "");
  found.ranks[1].threads = 5;
  expect_words(warning(found), {"node1 computes with 9 threads on 8 cores", "--threads 4"});
}

TEST(Doctor, ExaminesEveryRankAndLink) {
  const test::TempDir folder;
  auto transports = LocalTransport::create(3);
  std::optional<Examination> found;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      MachineOptions options;
      options.disk = folder.path();
      options.threads = 1;
      const auto result = examine(options, {*transports[rank], *transports[rank]});
      EXPECT_EQ(result.has_value(), rank == 0);
      if (result) found = result;
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(found->ranks.size(), 3u);
  ASSERT_EQ(found->links.size(), 2u);
  for (const MachineFacts& m : found->ranks) {
    EXPECT_EQ(m.disk_error, "");
    EXPECT_EQ(m.threads, 1);
    EXPECT_GT(m.memory_rate, 1e6);
    EXPECT_GT(m.disk_rate, 1e5);
    EXPECT_GT(m.scattered_rate, 1e4);
    EXPECT_GT(m.memory_total, m.memory_free / 2);
    EXPECT_FALSE(m.cpu.empty() || m.target.empty() || m.int8.empty() || m.file_system.empty());
  }
  for (const LinkFacts& link : found->links) {
    EXPECT_GT(link.latency_s, 0);
    EXPECT_GT(link.rate, 1e6);
  }
}

}  // namespace
}  // namespace headrace
