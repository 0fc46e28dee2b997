#include "runtime/plan/host_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "runtime/report/host_facts.h"

namespace headrace {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A machine with 8 GiB available, in a directory.
class HostMemory : public testing::Test {
 protected:
  HostMemory() {
    std::string pattern = testing::TempDir() + "host-memory-XXXXXX";
    root_ = mkdtemp(pattern.data());
    write("/proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n");
  }
  ~HostMemory() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void group_v1(const std::string& path, const std::string& limit, uint64_t used, uint64_t files) {
    const std::string group = "/sys/fs/cgroup/memory" + path + "/memory.";
    write(group + "limit_in_bytes", limit);
    write(group + "usage_in_bytes", std::to_string(used));
    write(group + "stat", "cache 5\ninactive_file 7\ntotal_inactive_file " + std::to_string(files) +
                              "\ntotal_active_file 0\n");
  }
  void group_v2(const std::string& path, const std::string& limit, uint64_t used, uint64_t files) {
    const std::string group = "/sys/fs/cgroup" + path + "/memory.";
    write(group + "max", limit);
    write(group + "current", std::to_string(used));
    write(group + "stat", "anon 5\ninactive_file 0\nactive_file " + std::to_string(files) + "\n");
  }

  std::string root_;
};

TEST_F(HostMemory, WithoutGroupsItIsWhatTheMachineHas) {
  EXPECT_EQ(available_host_memory(root_), 8192 * kMiB);
  write("/proc/self/cgroup", "7:cpu:/a\nnonsense\n0::\n3:memory\n");
  EXPECT_EQ(available_host_memory(root_), 8192 * kMiB);
}

TEST_F(HostMemory, TheOwnGroupOfVersion1) {
  write("/proc/self/cgroup", "5:cpu,memory:/job/step\n0::/other\n");
  group_v1("", "9223372036854771712", 6000 * kMiB, 0);
  group_v1("/job", "9223372036854771712", 500 * kMiB, 0);
  group_v1("/job/step", std::to_string(900 * kMiB), 400 * kMiB, 300 * kMiB);
  EXPECT_EQ(available_host_memory(root_), 800 * kMiB);
  // One above it has less.
  group_v1("/job", std::to_string(700 * kMiB), 500 * kMiB, 0);
  EXPECT_EQ(available_host_memory(root_), 200 * kMiB);
  // And more is taken than it allows.
  group_v1("/job", std::to_string(400 * kMiB), 500 * kMiB, 0);
  EXPECT_EQ(available_host_memory(root_), 0u);
}

TEST_F(HostMemory, TheOwnGroupOfVersion2) {
  write("/proc/self/cgroup", "0::/job\n");
  group_v2("", "max", 6000 * kMiB, 0);
  group_v2("/job", "max\n", 100 * kMiB, 0);
  EXPECT_EQ(available_host_memory(root_), 8192 * kMiB);
  group_v2("/job", std::to_string(300 * kMiB) + "\n", 100 * kMiB, 60 * kMiB);
  EXPECT_EQ(available_host_memory(root_), 260 * kMiB);
}

// In a container the path is the host's and the mounted directory is the group itself.
TEST_F(HostMemory, AContainerSeesItsGroupAsTheRoot) {
  write("/proc/self/cgroup", "4:memory:/docker/abc\n");
  group_v1("", std::to_string(512 * kMiB), 12 * kMiB, 0);
  EXPECT_EQ(available_host_memory(root_), 500 * kMiB);
}

class CpuQuota : public HostMemory {};

TEST_F(CpuQuota, TheLeastOfTheGroups) {
  EXPECT_EQ(cpu_quota(8, root_), 8);
  write("/proc/self/cgroup", "4:memory:/job\n3:cpuacct,cpu:/job/step\n0::/v2\n");
  write("/sys/fs/cgroup/cpu/job/step/cpu.cfs_quota_us", "-1\n");
  write("/sys/fs/cgroup/cpu/job/step/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(8, root_), 8);
  write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "350000\n");
  write("/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(8, root_), 4);
  EXPECT_EQ(cpu_quota(2, root_), 2);
  write("/sys/fs/cgroup/v2/cpu.max", "max 100000\n");
  EXPECT_EQ(cpu_quota(8, root_), 4);
  write("/sys/fs/cgroup/cpu.max", "10000 100000\n");
  EXPECT_EQ(cpu_quota(8, root_), 1);
}

TEST(Cores, ARanksPart) {
  const auto part = [](int machine, int usable, int quota, int ranks) {
    return Cores{machine, usable, quota}.for_one_of(ranks);
  };
  EXPECT_EQ(part(8, 8, 8, 1), 8);
  EXPECT_EQ(part(8, 8, 8, 3), 2);
  EXPECT_EQ(part(8, 8, 8, 16), 1);
  EXPECT_EQ(part(8, 4, 8, 2), 4);  // each is bound to its part
  EXPECT_EQ(part(8, 8, 2, 1), 2);
  EXPECT_EQ(part(8, 8, 4, 2), 2);
  EXPECT_EQ(part(8, 4, 2, 2), 1);
}

TEST(HostMemoryOfThisMachine, ThereIsSome) {
  EXPECT_GT(available_host_memory(), 16 * kMiB);
  EXPECT_LT(available_host_memory(), uint64_t{1} << 50);
}

TEST(DefaultHostMemory, LeavesAMargin) {
  EXPECT_EQ(default_host_memory(10000 * kMiB, 1), 9000 * kMiB);
  EXPECT_EQ(default_host_memory(10000 * kMiB, 2), 4500 * kMiB);
  EXPECT_EQ(default_host_memory(300 * kMiB, 1), 236 * kMiB);
  EXPECT_EQ(default_host_memory(300 * kMiB, 2), 86 * kMiB);
  EXPECT_EQ(default_host_memory(100 * kMiB, 1), 50 * kMiB);
  EXPECT_EQ(default_host_memory(0, 3), 0u);
}

}  // namespace
}  // namespace headrace
