"""The offload file with real processes: two that build at once, one that is killed while it builds
or while it reads, and headrace clean beside them.
"""
import os
import random
import signal
import subprocess
import time

import harness

MODEL = "synthetic:smollm2-135m:q8"
BUILT = "offload file built in"


class OffloadBuild(harness.ProgramTest):
    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk"
        self.builders = []
        self.addCleanup(self.end_builders)

    def end_builders(self):
        for builder in self.builders:
            builder.kill()
            builder.wait()
            builder.stdin.close()

    def start_builder(self, *options):
        number = len(self.builders)
        with open(self.folder / f"builder{number}", "wb") as log:
            builder = subprocess.Popen([os.environ["HEADRACE_OFFLOAD_BUILDER"], MODEL, self.disk, *options],
                                       stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        builder.log = lambda: (self.folder / f"builder{number}").read_text()
        self.builders.append(builder)
        return builder

    def finish(self, builder, code=0):
        builder.stdin.close()
        self.assertEqual(builder.wait(60), code, builder.log())
        return builder.log()

    def await_true(self, condition, builder, limit=60):
        end = time.monotonic() + limit
        while not condition():
            self.assertLess(time.monotonic(), end, builder.log())
            time.sleep(0.002)

    def names(self):
        return sorted(path.name for path in self.disk.iterdir()) if self.disk.exists() else []

    def only_file(self):
        self.assertEqual(len(self.names()), 1, self.names())
        return (self.disk / self.names()[0]).read_bytes()

    def undisturbed(self):
        self.assertIn(BUILT, self.finish(self.start_builder()))
        content = self.only_file()
        (self.disk / self.names()[0]).unlink()
        return content

    def test_two_build_at_once(self):
        expected = self.undisturbed()
        first = self.start_builder()
        self.await_true(lambda: "building" in first.log(), first)
        first.send_signal(signal.SIGSTOP)
        second = self.start_builder()
        self.await_true(lambda: "waiting" in second.log(), second)
        first.send_signal(signal.SIGCONT)
        self.assertIn(BUILT, self.finish(first))
        log = self.finish(second)
        self.assertIn("waiting for another process", log)
        self.assertNotIn(BUILT, log)
        self.assertTrue(self.only_file() == expected)

    def test_killed_while_building(self):
        expected = self.undisturbed()
        rng = random.Random(3)
        killed_in_the_middle = 0
        for _ in range(6):
            builder = self.start_builder()
            self.await_true(lambda: "building" in builder.log(), builder)
            time.sleep(rng.uniform(0, 0.3))
            builder.send_signal(signal.SIGKILL)
            builder.wait(30)
            self.assertLessEqual(len([n for n in self.names() if n.endswith(".offload")]), 1)
            if any(n.endswith(".building") for n in self.names()):
                killed_in_the_middle += 1
                text = self.run_program("clean", "--disk", self.disk, "--dry-run").stdout()
                self.assertIn("unfinished", text)
            else:
                self.run_program("clean", "--disk", self.disk)
        self.assertGreater(killed_in_the_middle, 0)
        log = self.finish(self.start_builder())
        self.assertTrue(self.only_file() == expected)
        self.assertNotIn("waiting", log)

    def test_the_waiting_one_takes_over_from_a_killed_one(self):
        expected = self.undisturbed()
        first = self.start_builder()
        self.await_true(lambda: "building" in first.log(), first)
        first.send_signal(signal.SIGSTOP)
        second = self.start_builder()
        self.await_true(lambda: "waiting" in second.log(), second)
        text = self.run_program("clean", "--disk", self.disk).stdout()
        self.assertIn("2 files in use", text)
        first.send_signal(signal.SIGKILL)
        self.assertIn(BUILT, self.finish(second))
        self.assertTrue(self.only_file() == expected)

    def test_clean_spares_the_file_of_a_reader_until_it_is_killed(self):
        reader = self.start_builder("--hold")
        self.await_true(lambda: "ready" in reader.log(), reader)
        self.assertIn("1 file in use", self.run_program("clean", "--disk", self.disk).stdout())
        self.assertEqual(len(self.names()), 1)
        reader.send_signal(signal.SIGKILL)
        reader.wait(30)
        again = self.start_builder()
        self.assertNotIn(BUILT, self.finish(again))
        text = self.run_program("clean", "--disk", self.disk).stdout()
        self.assertIn("1 file, ", text)
        self.assertIn("freed", text)
        self.assertEqual(self.names(), [])

    def test_little_memory(self):
        expected = self.undisturbed()
        self.finish(self.start_builder("--host-memory", str(600 << 10)))
        self.assertTrue(self.only_file() == expected)


if __name__ == "__main__":
    harness.main()
