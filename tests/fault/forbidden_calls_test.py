"""Machines and file systems that lack what offloading likes best: io_uring, O_DIRECT, files without
a name. The program goes on with what there is, says so, and gives the same tokens.
"""
import pathlib
import re
import subprocess
import sys
import unittest

import harness
import offload_test

FORBID = [sys.executable, str(pathlib.Path(__file__).resolve().parent / "forbid.py")]
FEW_KV = offload_test.requests(110, 200, 200)
NO_RING = r"through 16 threads \(io_uring: Operation not permitted\)"


class Forbidden(offload_test.Offload):
    def setUp(self):
        super().setUp()
        tried = subprocess.run([*FORBID, "io_uring", "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 77:
            raise unittest.SkipTest(tried.stderr.strip())

    def check(self, what, model, batch, how, ranks=None):
        log = self.run_offloaded(model, batch, *how, ranks=ranks, prefix=[*FORBID, what]).log()
        self.check_results(model, batch, f"without {what}")
        self.forget_results()
        return log

    def check_weights(self, what, ranks=None):
        log = self.check(what, self.small_model(), offload_test.FEW, offload_test.SMALL_STREAMED[ranks], ranks)
        self.assertEqual(log.count("read per step"), ranks or 1, log)
        return log

    def check_kv(self, what):
        log = self.check(what, offload_test.KV, FEW_KV, offload_test.KV_ON_DISK)
        self.assertRegex(log, "[1-9][0-9]* of them on disk")
        return log

    def test_weights_without_io_uring(self):
        for ranks in (None, 2):
            log = self.check_weights("io_uring", ranks)
            self.assertEqual(len(re.findall(NO_RING, log)), ranks or 1, log)

    def test_kv_without_io_uring(self):
        self.assertRegex(self.check_kv("io_uring"), NO_RING)

    def test_without_direct(self):
        self.assertIn("through io_uring", self.check_weights("direct"))
        self.assertRegex(self.check_weights("direct,io_uring"), NO_RING)
        self.assertIn("through io_uring", self.check_kv("direct"))

    def test_without_files_that_have_no_name(self):
        self.check_kv("tmpfile")
        self.assertEqual(self.names(), [])

    def test_the_calls_are_refused(self):
        """Else the tests above would show nothing."""
        self.disk.mkdir()
        calls = {"direct": "os.open('f', os.O_CREAT | os.O_WRONLY | os.O_DIRECT)",
                 "tmpfile": "os.open('.', os.O_TMPFILE | os.O_WRONLY)"}
        for what, call in calls.items():
            for names, refused in ((what, True), ("io_uring", False)):
                ended = subprocess.run([*FORBID, names, sys.executable, "-c", f"import os; {call}"],
                                       cwd=self.disk, capture_output=True, text=True, check=False)
                self.assertEqual("OSError" in ended.stderr, refused, ended.stderr)


if __name__ == "__main__":
    harness.main()
