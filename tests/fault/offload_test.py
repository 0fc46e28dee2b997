"""Faults of offloading, with real processes: budgets and disks that are too small, damaged offload
files, ranks and runs that share a directory, kill -9 while the disk is at work. Nothing is lost,
nothing twice; the message names the file and the cure; nothing but whole offload files stays.
"""
import json
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import tempfile
import time
import unittest

import harness
import wide_models

WEIGHTS = "synthetic:smollm2-135m:q8"  # 136 MiB of weights
KV = "synthetic:tiny-opt"
STREAMED = ("--host-memory", "40MiB", "--max-batch", 8, "--threads", 1)
# For the small model with its 24 MiB of weights, by how many ranks there are.
SMALL_STREAMED = {None: ("--host-memory", "16MiB", "--max-batch", 8, "--threads", 1),
                  2: ("--host-memory", "10MiB", "--max-batch", 8, "--threads", 1, "--split", "6,6")}
KV_ON_DISK = ("--host-memory", "16MiB", "--kv-memory", "12MiB", "--max-batch", 96, "--threads", 1)


def requests(count, most_prompt, most_tokens, vocabulary=300):
    rng = random.Random(7)
    return [{"custom_id": f"r{i}", "prompt": [rng.randrange(3, vocabulary) for _ in range(rng.randint(1, most_prompt))],
             "max_tokens": rng.randint(1, most_tokens), "ignore_eos": True, "logprobs": 1, "seed": i,
             "temperature": rng.choice((0, 0.9))} for i in range(count)]


FEW = requests(10, 12, 6)
MANY_KV = requests(400, 200, 200)


def units(path):
    """The images in an offload file, by name: (offset, bytes)."""
    with open(path, "rb") as file:
        head = file.read(64)
        text = file.read(struct.unpack_from("<Q", head, 24)[0])
    return {unit["name"]: (unit["offset"], unit["bytes"]) for unit in json.loads(text)["units"]}


def flip_bit(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


class Offload(harness.ProgramTest):
    expected_results = {}  # of undisturbed runs with everything in memory
    models = None          # the folder of the small model, one for all tests

    @classmethod
    def small_model(cls):
        if Offload.models is None:
            Offload.models = tempfile.mkdtemp(prefix="hr.")
            unittest.addModuleCleanup(shutil.rmtree, Offload.models, True)
            wide_models.write(pathlib.Path(Offload.models) / "qwen2", "qwen2")
        return pathlib.Path(Offload.models) / "qwen2"

    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk"
        self.output = self.folder / "out.jsonl"

    def expected(self, model, batch):
        key = model, len(batch)
        if key not in self.expected_results:
            self.expected_results[key] = self.generate(model, batch, "--threads", 2, limit=120)
        return self.expected_results[key]

    def options(self, model, batch, *more):
        path = self.folder / "in.jsonl"
        harness.write_requests(path, batch)
        return ["generate", "--model", model, "--input", path, "--output", self.output, "--token-ids",
                "--disk", self.disk, "--quiet", "--resume", *more]

    def run_offloaded(self, model, batch, *more, **how):
        return self.run_program(*self.options(model, batch, *more), **how)

    def check_results(self, model, batch, note=""):
        self.assert_same_results(self.expected(model, batch), harness.read_results(self.output), note)

    def names(self):
        return sorted(path.name for path in self.disk.iterdir()) if self.disk.exists() else []

    def offload_files(self, count=1):
        """The offload files; nothing else is there."""
        self.assertEqual(len(self.names()), count, self.names())
        for name in self.names():
            self.assertRegex(name, r"^[0-9a-f]{16}-\d+-\d+-[0-9a-f]{16}\.offload$")
        return [self.disk / name for name in self.names()]

    def forget_results(self):
        for path in self.folder.glob("out.jsonl*"):
            path.unlink()

    def remove_offload_files(self):
        for path in self.disk.glob("*.offload"):
            path.unlink()


class DoesNotFit(Offload):
    def check_budget(self, model, too_small):
        job = self.run_offloaded(model, FEW, "--host-memory", too_small, expect=harness.DOES_NOT_FIT)
        log = job.log()
        for line in ("host memory is too small", r"\n  weights  ", r"\n  activations  ", r"\n  KV cache  ",
                     r"\n  needed  ", r"\n  budget  "):
            self.assertRegex(log, line)
        self.assertEqual(self.names(), [])
        least = int(re.search(r"--host-memory (\d+)MiB", log).group(1))
        if least > 1:
            self.run_offloaded(model, FEW, "--host-memory", f"{least - 1}MiB", expect=harness.DOES_NOT_FIT)
        self.run_offloaded(model, FEW, "--host-memory", f"{least}MiB")
        self.check_results(model, FEW, f"with {least} MiB")
        print(f"{model}: {too_small} refused, {least} MiB enough", flush=True)

    def test_host_memory(self):
        self.check_budget(WEIGHTS, "2MiB")

    def test_host_memory_of_a_small_model(self):
        self.check_budget(KV, "300KiB")

    def test_host_memory_of_one_of_two_ranks(self):
        job = self.run_offloaded(WEIGHTS, FEW, ranks=[["--host-memory", "40MiB"], ["--host-memory", "2MiB"]],
                                 expect=harness.DOES_NOT_FIT)
        self.assertIn("host memory is too small", job.log())

    def test_disk_budget(self):
        budget = ("--host-memory", "40MiB", "--disk-budget")
        log = self.run_offloaded(WEIGHTS, FEW, *budget, "100MiB", expect=harness.DOES_NOT_FIT).log()
        self.assertRegex(log, r"the disk is too small(.|\n)*136\.\d MiB needed, 100\.0 MiB there")
        self.assertIn("--disk-budget", log)
        self.assertEqual(self.names(), [])
        self.run_offloaded(WEIGHTS, FEW, *budget, "137MiB")
        self.check_results(WEIGHTS, FEW)

    def test_no_disk_allowed(self):
        log = self.run_offloaded(WEIGHTS, FEW, "--host-memory", "40MiB", "--disk-budget", "0",
                                 expect=harness.DOES_NOT_FIT).log()
        self.assertIn("--disk-budget", log)


class Disk(Offload):
    def test_not_a_directory(self):
        self.disk.write_text("")
        for model, how in ((WEIGHTS, STREAMED), (KV, KV_ON_DISK)):
            for ranks in (None, 2):
                log = self.run_offloaded(model, FEW if model == WEIGHTS else MANY_KV, *how, ranks=ranks,
                                         expect=harness.IO).log()
                self.assertIn(str(self.disk), log)
                self.assertIn("--disk", log)

    def test_read_only(self):
        self.small_disk(self.disk, "400m", ",ro")
        for model, how in ((WEIGHTS, STREAMED), (KV, KV_ON_DISK)):
            log = self.run_offloaded(model, FEW if model == WEIGHTS else MANY_KV, *how, expect=harness.IO).log()
            self.assertIn(str(self.disk), log)
            self.assertIn("--disk", log)

    def test_too_small_for_the_weights(self):
        self.small_disk(self.disk, "64m")
        log = self.run_offloaded(WEIGHTS, FEW, *STREAMED, expect=harness.DOES_NOT_FIT).log()
        self.assertRegex(log, r"the disk is too small(.|\n)*136\.\d MiB needed, 64\.0 MiB there")
        self.assertIn("headrace clean", log)
        self.assertEqual(self.names(), [])
        # A part of it fits: with more memory, half of it.
        self.run_offloaded(WEIGHTS, FEW, "--host-memory", "300MiB")
        self.check_results(WEIGHTS, FEW)

    def test_the_own_file_takes_no_room_twice(self):
        self.small_disk(self.disk, "150m")
        for _ in range(2):
            self.run_offloaded(WEIGHTS, FEW, *STREAMED)
            self.check_results(WEIGHTS, FEW)
        self.offload_files()

    def test_another_run_was_quicker_to_take_the_room(self):
        self.small_disk(self.disk, "200m")
        self.run_offloaded(WEIGHTS, FEW, *STREAMED)
        other = self.options(WEIGHTS.replace("q8", "bf16"), FEW, *STREAMED)
        log = self.run_program(*other, "--output", self.folder / "other.jsonl", expect=harness.DOES_NOT_FIT).log()
        self.assertIn("headrace clean", log)
        self.offload_files()

    def test_full_while_building(self):
        # The limit of a file's size stands for what is taken between a look at the disk and the write.
        log = self.run_offloaded(WEIGHTS, FEW, *STREAMED, expect=harness.IO,
                                 prefix=("prlimit", f"--fsize={64 << 20}")).log()
        self.assertIn(str(self.disk), log)
        self.assertIn("cannot be reserved", log)
        self.assertIn("--disk", log)
        self.assertEqual(self.names(), [])
        self.run_offloaded(WEIGHTS, FEW, *STREAMED)
        self.check_results(WEIGHTS, FEW)

    def test_full_while_reserving_kv(self):
        log = self.run_offloaded(KV, MANY_KV, *KV_ON_DISK, expect=harness.IO,
                                 prefix=("prlimit", f"--fsize={8 << 20}")).log()
        self.assertIn(f"cannot be reserved in {self.disk}", log)
        self.assertIn("--disk", log)
        self.assertEqual(self.names(), [])

    def test_too_small_for_the_kv_cache(self):
        # Known beforehand, so the run does with fewer sequences at once.
        self.small_disk(self.disk, "8m")
        log = self.run_offloaded(KV, MANY_KV, *KV_ON_DISK).log()
        self.assertNotIn("of them on disk", log)
        self.check_results(KV, MANY_KV)


class Damaged(Offload):
    """More damage to the table is tried in unit/offload_file_test.cpp."""

    def setUp(self):
        super().setUp()
        self.model = self.small_model()

    def run_streamed(self, batch, *more, ranks=None, **how):
        return self.run_offloaded(self.model, batch, *SMALL_STREAMED[ranks], *more, ranks=ranks, **how)

    def build(self, ranks=None):
        self.run_streamed(FEW[:1], ranks=ranks)
        self.forget_results()
        return self.offload_files(ranks or 1)

    def check_rebuilt(self, reason):
        log = self.run_streamed(FEW).log()
        self.assertIn(reason, log)
        self.assertIn("offload file built in", log)
        self.check_results(self.model, FEW, reason)
        self.forget_results()

    def test_truncated(self):
        path, = self.build()
        whole = path.read_bytes()
        first = min(offset for offset, _ in units(path).values())
        for length in (0, first - 4096, first + 5, len(whole) - 1):
            os.truncate(path, length)
            self.check_rebuilt("is truncated" if length < first else "has the wrong length")
            self.assertTrue(path.read_bytes() == whole, length)

    def test_of_another_format_model_or_table(self):
        path, = self.build()
        whole = path.read_bytes()
        first = min(offset for offset, _ in units(path).values())
        for offset, reason in ((8, "version"), (70, "built anew"), (first - 4096, "damaged table")):
            flip_bit(path, offset)
            self.check_rebuilt(reason)
            self.assertTrue(path.read_bytes() == whole, offset)
        self.run_streamed(FEW[:1], "--weights", "q8", "--host-memory", "9MiB", "--output", self.folder / "other")
        other, = (name for name in self.offload_files(2) if name != path)
        path.write_bytes(other.read_bytes())
        self.check_rebuilt("built anew")
        self.assertTrue(path.read_bytes() == whole)

    def check_flipped(self, unit, at, ranks=None, rank=0):
        path = self.build(ranks)[rank]
        offset, length = units(path)[unit]
        flip_bit(path, offset + (at if at >= 0 else length + at))
        begin = time.monotonic()
        log = self.run_streamed(FEW, ranks=ranks, expect=harness.IO).log()
        self.assertLess(time.monotonic() - begin, 30)
        self.assertIn(f"{path}: the {unit} is damaged between offset", log)
        self.assertIn("--resume", log)
        self.assertFalse(path.exists())
        again = self.run_streamed(FEW, ranks=ranks).log()
        self.assertIn("offload file built in", again)
        self.check_results(self.model, FEW, unit)
        self.offload_files(ranks or 1)
        return log

    def test_flipped_bit_in_a_streamed_part(self):
        self.check_flipped("layer 7", 1000)

    def test_flipped_bit_in_a_resident_part(self):
        self.check_flipped("layer 7", -1)

    def test_flipped_bit_in_the_embedding(self):
        self.check_flipped("embedding", 5000000)

    def test_flipped_bit_on_another_rank(self):
        # Rank 0 waits for rank 1, which fails in its first step.
        self.check_flipped("layer 11", 1000, ranks=2, rank=1)

    def test_truncated_while_it_is_read(self):
        batch = requests(40, 12, 40)
        for ranks in (None, 2):
            job = self.start(*self.options(self.model, batch, *SMALL_STREAMED[ranks]), ranks=ranks)
            job.await_lines(self.output, 3)
            path = self.offload_files(ranks or 1)[-1]
            os.truncate(path, path.stat().st_size // 2 + 5)
            self.assertEqual(job.wait(30), harness.IO, job.log())
            self.assertIn(f"{path} at offset", job.log())
            self.assertIn("truncated", job.log())
            job.await_no_process()
            self.assertLess(len(harness.read_results(self.output)), len(batch))
            self.run_streamed(batch, ranks=ranks)
            self.check_results(self.model, batch, f"{ranks} ranks")
            self.forget_results()
            self.remove_offload_files()


class Together(Offload):
    def test_two_runs_of_two_ranks_build_in_one_directory(self):
        harness.write_requests(self.folder / "in.jsonl", FEW)
        runs = [(self.folder / f"out{i}.jsonl", ["--split", "15,15"]) for i in range(3)]
        jobs = []
        for output, split in runs:
            jobs.append(self.start(*self.options(WEIGHTS, FEW, *STREAMED), *split, "--output", output, ranks=2))
            # Two mpiruns that make their common directory at the same time fail: not what is tested here.
            while not any(self.folder.glob("ompi.*")) and jobs[0].process.poll() is None:
                time.sleep(0.01)
        for job, (output, _) in zip(jobs, runs):
            self.assertEqual(job.wait(90), harness.DONE, job.log())
            self.assert_same_results(self.expected(WEIGHTS, FEW), harness.read_results(output))
        self.offload_files(2)
        self.assertEqual(sum(job.log().count("offload file built in") for job in jobs), 2)

    def test_ranks_with_different_budgets(self):
        for least, most in (("30MiB", "300MiB"), ("300MiB", "30MiB")):
            log = self.run_offloaded(WEIGHTS, FEW, "--threads", 1, "--max-batch", 8,
                                     ranks=[["--host-memory", least], ["--host-memory", most]]).log()
            self.assertIn("read per step", log)
            self.check_results(WEIGHTS, FEW, f"{least} and {most}")
            self.forget_results()
        # One has its KV cache on disk, the other in memory.
        own = [["--host-memory", "16MiB", "--kv-memory", "12MiB"], ["--host-memory", "300MiB"]]
        log = self.run_offloaded(KV, MANY_KV, "--threads", 1, "--max-batch", 96, ranks=own).log()
        self.assertEqual(log.count("of them on disk"), 1, log)
        self.check_results(KV, MANY_KV)

    def test_ranks_with_different_options(self):
        for own in ([["--kv", "f16"], ["--kv", "q8"]], [["--math", "int8"], ["--math", "f32"]]):
            log = self.run_offloaded(KV, FEW, ranks=own, expect=harness.USAGE).log()
            self.assertIn("the ranks do not agree", log)
            self.assertIn("rank 1", log)


class Kill(Offload):
    def check_killed(self, model, batch, strike, ranks, how, rounds, before=lambda number: None):
        """Kills a rank where `strike` says, as often; then the run goes on to its end."""
        self.expected(model, batch)
        for number in range(rounds):
            before(number)
            job = self.start(*self.options(model, batch, *how), ranks=ranks)
            victim = strike(job, number)
            os.kill(job.process.pid if ranks is None else job.rank_process(victim), signal.SIGKILL)
            self.assertNotEqual(job.wait(30), harness.DONE)
            job.await_no_process()
        if self.output.exists():
            self.assertLess(self.output.read_bytes().count(b"\n"), len(batch), "every kill came too late")
        job = self.run_offloaded(model, batch, *how, ranks=ranks, limit=120)
        self.assertIn("disk", job.log())
        self.check_results(model, batch)
        return job.log()

    def test_while_building(self):
        rng = random.Random(3)
        unfinished = 0
        for ranks in (None, 2):
            def strike(job, number):
                nonlocal unfinished
                job.await_log("building the offload file")
                time.sleep(rng.uniform(0, 0.08))
                unfinished += any(name.endswith(".building") for name in self.names())
                return number % 2
            self.check_killed(WEIGHTS, FEW, strike, ranks, STREAMED, 3,
                              before=lambda number: self.remove_offload_files())
            self.offload_files(ranks or 1)
            self.remove_offload_files()
            self.forget_results()
        self.assertGreater(unfinished, 0, "no kill was in the middle of a build")

    def check_while_running(self, model, batch, ranks, how, rounds, step):
        def strike(job, number):
            job.await_lines(self.output, step * (number + 1))
            return number % 2
        return self.check_killed(model, batch, strike, ranks, how, rounds)

    def test_while_streaming(self):
        batch = requests(100, 12, 40)
        for ranks in (None, 2):
            self.check_while_running(self.small_model(), batch, ranks, SMALL_STREAMED[ranks], 2, 10)
            self.offload_files(ranks or 1)
            self.remove_offload_files()
            self.forget_results()

    def test_while_writing_kv(self):
        for ranks in (None, 2):
            log = self.check_while_running(KV, MANY_KV, ranks, KV_ON_DISK, 2, 100)
            self.assertEqual(log.count("of them on disk"), ranks or 1)
            self.assertEqual(self.names(), [], "something of the KV cache was left")
            self.forget_results()


if __name__ == "__main__":
    harness.main()
