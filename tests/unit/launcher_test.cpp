#include "comm/launcher.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

namespace headrace {
namespace {

namespace fs = std::filesystem;

class Leftovers : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "leftoversXXXXXX";
    folder_ = mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path make_file(const std::string& name) const {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << std::string(4096, 'x');
    return folder_ / name;
  }
  void sweep(int age_seconds = 0) const {
    remove_leftovers_of_dead_jobs(folder_, folder_, "node.site", std::chrono::seconds(age_seconds));
  }

  fs::path folder_;
  const std::string user_ = "." + std::to_string(geteuid());
};

TEST_F(Leftovers, SegmentsOfDeadJobsGo) {
  const fs::path segment = make_file("vader_segment.node" + user_ + ".5aa20001.1");
  const fs::path other = make_file("of_another_program.1");
  sweep();
  EXPECT_FALSE(fs::exists(segment));
  EXPECT_TRUE(fs::exists(other));
}

TEST_F(Leftovers, SegmentsInUseStay) {
  const fs::path segment = make_file("vader_segment.node" + user_ + ".5aa20001.2");
  const int file = open(segment.c_str(), O_RDWR);
  void* memory = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file, 0);
  ASSERT_NE(memory, MAP_FAILED);
  close(file);
  sweep();
  EXPECT_TRUE(fs::exists(segment));
  munmap(memory, 4096);
  sweep();
  EXPECT_FALSE(fs::exists(segment));
}

TEST_F(Leftovers, YoungOnesStay) {
  const fs::path segment = make_file("vader_segment.node" + user_ + ".5aa20001.3");
  const fs::path contact = make_file("ompi.node" + user_ + "/pid.999999999/contact.txt");
  sweep(60);
  EXPECT_TRUE(fs::exists(segment));
  EXPECT_TRUE(fs::exists(contact));
}

TEST_F(Leftovers, SessionsOfDeadLaunchersGo) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  ASSERT_EQ(child, waitpid(child, nullptr, 0));
  const std::string sessions = "ompi.node" + user_;
  const fs::path dead = make_file(sessions + "/pid." + std::to_string(child) + "/contact.txt");
  const fs::path alive = make_file(sessions + "/pid." + std::to_string(getpid()) + "/contact.txt");
  const fs::path other = make_file(sessions + "/notes.txt");
  sweep();
  EXPECT_FALSE(fs::exists(dead.parent_path()));
  EXPECT_TRUE(fs::exists(alive));
  EXPECT_TRUE(fs::exists(other));
  fs::remove_all(alive.parent_path());
  fs::remove(other);
  sweep();
  EXPECT_FALSE(fs::exists(folder_ / sessions));
}

// In folders that nodes or containers share. Their processes cannot be seen.
TEST_F(Leftovers, OfOtherHostsStay) {
  for (const std::string host : {"node2", "node.site.other", "site"}) {
    const fs::path segment = make_file("vader_segment." + host + user_ + ".5aa20001.1");
    const fs::path contact = make_file("ompi." + host + user_ + "/pid.999999999/contact.txt");
    sweep();
    EXPECT_TRUE(fs::exists(segment)) << host;
    EXPECT_TRUE(fs::exists(contact)) << host;
  }
  const fs::path with_domain = make_file("vader_segment.node.site" + user_ + ".5aa20001.1");
  sweep();
  EXPECT_FALSE(fs::exists(with_domain));
}

TEST_F(Leftovers, NoSuchFolder) {
  remove_leftovers_of_dead_jobs(folder_ / "none", folder_ / "none", "node",
                                std::chrono::seconds(0));
}

}  // namespace
}  // namespace headrace
