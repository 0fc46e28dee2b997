"""Within its budget (promise 3): every rank in a memory cgroup 64 MiB above --host-memory.

The 64 MiB are for code, libraries and MPI; page cache counts, too, but the kernel drops it where it
must. Each case prints the budget, the most that was used, and what of it was outside
the budget. To make that the most that can be, malloc fills all memory it gives out
(MALLOC_PERTURB_), so a buffer that a short run would not touch counts as used. The model's files
are not in the page cache at the start, else their pages would be charged to somebody else.
"""
import json
import os
import random
import re

import cgroup
import harness

MIB = 1 << 20
OUTSIDE = 64 * MIB
TOUCH_ALL = ["env", "MALLOC_PERTURB_=85"]
LONG_TEXT = "The mill stood below the weir, and the water that drove it came through a headrace. "


def token_requests(count, prompt, tokens):
    rng = random.Random(3)
    return [{"custom_id": f"r{i}", "prompt": [rng.randrange(3, 300) for _ in range(rng.randint(1, prompt))],
             "max_tokens": rng.randint(1, tokens), "ignore_eos": True, "seed": i, "logprobs": 1} for i in range(count)]


def text_requests(count, repeats, tokens):
    return [{"custom_id": f"r{i}", "prompt": f"{i}. " + LONG_TEXT * (1 + i % repeats), "max_tokens": 2 + i % tokens,
             "logprobs": 2, "temperature": 0.7, "seed": i} for i in range(count)]


def forget_pages(path):
    """Drops a file, or those of a folder, from the page cache."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class Memory(harness.ProgramTest):
    def setUp(self):
        super().setUp()
        self.groups = []

    def group(self, name, limit):
        made = cgroup.make(name, limit)
        self.addCleanup(made.remove)
        self.groups.append(made)
        return made

    def run_in_groups(self, budgets, *arguments, limit=120):
        """Runs the program with a rank for each budget (in MiB), each in its own group."""
        groups = [self.group(f"{len(self.groups)}.{rank}", budget * MIB + OUTSIDE) for rank, budget in enumerate(budgets)]
        own = [["--host-memory", f"{budget}MiB"] for budget in budgets]
        if len(budgets) == 1:
            job = self.start(*arguments, *own[0], prefix=groups[0].prefix() + TOUCH_ALL)
        else:
            job = self.start(*arguments, ranks=own, prefix=[group.prefix() + TOUCH_ALL for group in groups])
        self.assertEqual(job.wait(limit), harness.DONE, job.log())
        for rank, (group, budget) in enumerate(zip(groups, budgets)):
            peak = group.peak()
            print(f"{self.id().split('.')[-1]}, rank {rank}: budget {budget} MiB, peak {peak / MIB:.1f} MiB, "
                  f"difference {peak / MIB - budget:+.1f} MiB, limit reached {group.failures()} times", flush=True)
            self.assertLessEqual(peak, budget * MIB + OUTSIDE)
            self.assertEqual(group.killed(), 0)
            # The budget was used at all: else this test would find nothing.
            self.assertGreater(peak, 0.6 * budget * MIB)
        return job

    def generate_in_groups(self, model, requests, budgets, *more, turns=1, limit=120):
        """Results are those of a run that has all in memory. The first turn builds the offload file
        and reads it, a second one only reads it."""
        expected = self.generate(model, requests, "--threads", 2, "--host-memory", "2GiB", limit=limit)
        path = self.folder / "in.jsonl"
        harness.write_requests(path, requests)
        for turn in range(turns):
            if os.path.exists(model):
                forget_pages(model)
            output = self.folder / f"limited{turn}.jsonl"
            job = self.run_in_groups(budgets, "generate", "--model", model, "--input", path, "--output", output,
                                     "--token-ids", "--disk", self.folder / "disk", "--threads", 2, "--quiet", *more,
                                     limit=limit)
            self.assert_same_results(expected, harness.read_results(output))
        return job


class Generate(Memory):
    def test_smollm2_streamed(self):
        job = self.generate_in_groups(harness.real_model(harness.SMOL), text_requests(16, 4, 4), [60], turns=2)
        self.assertIn("read per step", job.log())

    def test_smollm2_all_in_memory(self):
        # The checkpoint passes through the page cache on its way.
        job = self.generate_in_groups(harness.real_model(harness.SMOL), text_requests(16, 4, 4), [160],
                                      "--disk-budget", "0")
        self.assertNotIn("read per step", job.log())
        self.assertEqual([0] * len(self.groups), [group.failures() for group in self.groups], "the limit was reached")

    def test_qwen_coder_on_two_ranks(self):
        # Rank 0 has the tokenizer of 152,000 tokens, in its budget.
        job = self.generate_in_groups(harness.real_model(harness.QWEN), text_requests(6, 4, 3), [110, 130])
        self.assertIn("read per step", job.log())

    def test_synthetic_qwen_far_larger_than_its_budget(self):
        job = self.generate_in_groups("synthetic:qwen2.5-0.5b:q8", token_requests(4, 20, 2), [110])
        self.assertIn("read per step", job.log())

    def test_kv_on_disk(self):
        job = self.generate_in_groups("synthetic:smollm2-135m:q8", token_requests(48, 80, 8), [90],
                                      "--kv-memory", "40MiB", "--max-batch", 48)
        self.assertRegex(job.log(), "[1-9][0-9]* of them on disk")

    def test_two_ranks(self):
        self.generate_in_groups("synthetic:smollm2-135m:q8", token_requests(12, 40, 4), [50, 40])


class Bench(Memory):
    def check(self, budgets):
        path = self.folder / "bench.json"
        self.run_in_groups(budgets, "bench", "--model", "synthetic:smollm2-135m:q8", "--batch", "1,8", "--disk",
                           self.folder / "disk", "--prompt-tokens", 32, "--generate-tokens", 4, "--json", path)
        self.assertTrue(json.loads(path.read_text()))

    def test_one_rank(self):
        self.check([60])

    def test_two_ranks(self):
        self.check([50, 40])


class Limits(Memory):
    def run_in(self, group, *arguments, expect=harness.DONE):
        requests = self.folder / "in.jsonl"
        harness.write_requests(requests, token_requests(4, 10, 4))
        return self.run_program("generate", "--input", requests, "--output", self.folder / f"out{len(self.jobs)}.jsonl",
                                "--quiet", "--disk", self.folder / "disk", *arguments,
                                prefix=group.prefix() + TOUCH_ALL, expect=expect)

    def test_a_limit_below_the_budget_is_warned_about_before_the_start(self):
        group = self.group("small", 150 * MIB)
        log = self.run_in(group, "--model", "synthetic:tiny-opt", "--host-memory", "200MiB", "--max-batch", 4).log()
        left = re.search(r"--host-memory 200\.0 MiB is more than the (\d+)\.\d MiB", log)
        self.assertTrue(left, log)
        self.assertTrue(100 < int(left.group(1)) <= 150, log)
        self.assertNotIn("--host-memory", self.run_in(group, "--model", "synthetic:tiny-opt", "--host-memory",
                                                      "100MiB").log())

    def test_without_a_budget_the_limit_is_the_measure(self):
        group = self.group("default", 180 * MIB)
        log = self.run_in(group, "--model", "synthetic:smollm2-135m:q8").log()
        self.assertIn("read per step", log)
        self.assertEqual(group.killed(), 0)
        print(f"no --host-memory: limit 180 MiB, peak {group.peak() / MIB:.1f} MiB", flush=True)
        self.assertLessEqual(group.peak(), 180 * MIB)


if __name__ == "__main__":
    harness.main()
