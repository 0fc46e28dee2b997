"""headrace doctor: every rank and link is there, and what is wrong is said with what to do."""
import os
import pathlib
import re
import shutil
import signal
import sys
import unittest

import harness

FORBID = pathlib.Path(__file__).resolve().parent.parent / "fault" / "forbid.py"


class Doctor(harness.ProgramTest):
    def doctor(self, *arguments, **options):
        disk = self.folder / "disk"
        job = self.run_program("doctor", "--disk", disk, *arguments, **options)
        return job.stdout()

    def test_alone(self):
        text = self.doctor()
        self.assertEqual(1, text.count("rank 0 on "))
        self.assertNotIn("link", text)
        self.assertRegex(text, r"cpu +\S.*, \d+ of \d+ cores to use.*, \d+ threads?\n")
        self.assertRegex(text, r"memory +\S+ .iB free of \S+ .iB, read at \S+ [MG]B/s")
        self.assertRegex(text, r"disk +/.*free, read at \S+ [MG]B/s, in small pieces at \S+ [MG]B/s")
        self.assertRegex(text, r"mpi +none")
        self.assertEqual([], list((self.folder / "disk").iterdir()), "the disk is as it was")

    def test_ranks_and_links(self):
        for ranks in (1, 2, 3):
            with self.subTest(ranks=ranks):
                text = self.doctor("--threads", 1, ranks=ranks)
                self.assertEqual([str(r) for r in range(ranks)],
                                 re.findall(r"^rank (\d+) on \S+$", text, re.MULTILINE))
                self.assertEqual(ranks - 1, len(re.findall(
                    r"^link from rank \d to rank \d: \d+ us for a message, \S+ [MG]B/s$", text,
                    re.MULTILINE)))
                self.assertEqual(ranks, len(re.findall(r"^  mpi +Open MPI v\d", text, re.MULTILINE)))

    def test_more_threads_than_cores(self):
        cores = os.cpu_count()
        text = self.doctor("--threads", cores, ranks=2)
        self.assertIn(f"{2 * cores} threads on {cores} cores: give --threads", text)

    @unittest.skipUnless(shutil.which("taskset") and os.cpu_count() > 1, "one core, or no taskset")
    def test_bound_to_one_core(self):
        text = self.doctor(prefix=("taskset", "-c", "0"))
        self.assertIn(f"1 of {os.cpu_count()} cores to use (bound), 1 thread\n", text)
        self.assertIn("--bind-to none", text)

    @unittest.skipUnless((os.cpu_count() or 0) > 1, "one core")
    def test_cpu_quota(self):
        group = pathlib.Path("/sys/fs/cgroup/cpu") / f"headrace-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            self.skipTest(f"no CPU cgroup of version 1 can be made: {error}")
        self.addCleanup(group.rmdir)
        (group / "cpu.cfs_quota_us").write_text((group / "cpu.cfs_period_us").read_text())
        text = self.doctor(prefix=("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"))
        self.assertIn(f"1 of {os.cpu_count()} cores to use, 1 thread\n", text)
        self.assertIn("cpu.max", text)

    def test_no_io_uring(self):
        text = self.doctor(prefix=(sys.executable, FORBID, "io_uring"))
        self.assertRegex(text, r"- rank 0 on \S+ reads through \d+ threads.*kernel.io_uring_disabled")

    def test_a_disk_that_cannot_be_used(self):
        (self.folder / "disk").write_text("a file")
        text = self.doctor(ranks=2, expect=harness.DONE)
        self.assertEqual(2, text.count(f"{self.folder}/disk: not usable"))
        self.assertRegex(text, r"- rank 1 on \S+: .*disk .*: Not a directory")

    def test_memory_is_no_disk(self):
        if not os.access("/dev/shm", os.W_OK):
            self.skipTest("/dev/shm is not writable")
        folder = pathlib.Path("/dev/shm") / self.folder.name
        self.addCleanup(shutil.rmtree, folder, True)
        text = self.run_program("doctor", "--disk", folder).stdout()
        self.assertIn(f"{folder} is in memory (tmpfs)", text)

    def test_a_rank_that_stops_is_missed(self):
        job = self.start("doctor", "--disk", self.folder / "disk", "--peer-timeout", 6, ranks=2)
        # Both ranks make the folder in the middle of their measurements.
        job.await_true((self.folder / "disk").exists, "measuring", 30)
        os.kill(job.rank_process(1), signal.SIGSTOP)
        self.assertEqual(harness.TRY_AGAIN, job.wait(40))
        self.assertRegex(job.log(), "rank 1 ")

    def test_unknown_options(self):
        self.run_program("doctor", "--model", "x", expect=harness.USAGE)
        self.run_program("doctor", "--target", "mmx", expect=harness.USAGE, ranks=2)


harness.main()
