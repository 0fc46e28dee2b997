"""headrace bench: what it counts, what it writes, and what it refuses."""
import json
import os
import signal

import harness

DOES_NOT_FIT, IO = 73, 74
LLAMA = "synthetic:tiny-llama:q8"


class BenchTest(harness.ProgramTest):
    def bench(self, *arguments, ranks=None, **options):
        """The JSON and the table of a bench."""
        path = self.folder / f"bench{len(self.jobs)}.json"
        job = self.run_program("bench", "--json", path, *arguments, ranks=ranks, **options)
        return json.loads(path.read_text()), job.stdout()

    def check(self, report, batches, prompt, generate, repeat, ranks):
        """Counts are exact, times are consistent, nothing is missing."""
        self.assertTrue(report["complete"])
        self.assertRegex(report["headrace"], r"^\d+\.\d+\.\d+ ")
        self.assertRegex(report["fingerprint"], r"^[0-9a-f]{16}$")
        self.assertEqual((prompt, generate, repeat),
                         (report["prompt_tokens"], report["generate_tokens"], report["repeat"]))
        self.assertEqual(batches, [entry["batch"] for entry in report["batches"]])
        for entry in report["batches"]:
            batch = entry["batch"]
            self.assertEqual(repeat, len(entry["runs"]))
            for run in entry["runs"]:
                self.assertEqual(batch * prompt, run["prompt_tokens"])
                self.assertEqual(batch * generate, run["generated_tokens"])
                self.assertGreater(run["prefill_s"], 0)
                self.assertGreaterEqual(run["decode_s"], 0)
                self.assertGreaterEqual(run["steps"], generate)
            self.assertEqual(1, len({run["tokens_hash"] for run in entry["runs"]}))
            self.check_rates(entry, batch)
        self.check_ranks(report, ranks)

    def check_rates(self, entry, batch):
        runs = entry["runs"]
        rates = {
            "prefill_tokens_per_s": [r["prompt_tokens"] / r["prefill_s"] for r in runs],
            "generated_tokens_per_s": [r["generated_tokens"] / (r["prefill_s"] + r["decode_s"])
                                       for r in runs],
            "decode_tokens_per_s": [(r["generated_tokens"] - batch) / r["decode_s"]
                                    for r in runs if r["decode_s"] > 0]}
        for name, values in rates.items():
            if not values:
                self.assertIsNone(entry[name])
                continue
            self.assertAlmostEqual(min(values), entry[name]["min"], delta=1e-6 * min(values))
            self.assertAlmostEqual(max(values), entry[name]["max"], delta=1e-6 * max(values))
            self.assertLessEqual(entry[name]["min"], entry[name]["median"])
            self.assertLessEqual(entry[name]["median"], entry[name]["max"])

    def check_ranks(self, report, ranks):
        self.assertEqual(list(range(ranks)), [rank["rank"] for rank in report["ranks"]])
        border = 0
        for rank in report["ranks"]:
            self.assertEqual(border, rank["layers"][0])
            border = rank["layers"][1]
            self.assertGreater(rank["peak_memory_bytes"], 1 << 20)
            self.assertGreater(rank["host_memory_bytes"], 1 << 20)
            self.assertGreaterEqual(rank["threads"], 1)
            self.assertTrue(rank["host"] and rank["target"])
            self.assertLessEqual(rank["load_s"], report["load_s"] + 1)


class Figures(BenchTest):
    def test_one_to_three_ranks_count_the_same_tokens(self):
        arguments = ("--model", LLAMA, "--batch", "1,5,2", "--prompt-tokens", 33,
                     "--generate-tokens", 9, "--repeat", 2, "--prefill-chunk", 10)
        hashes = []
        for ranks in (None, 1, 2, 3):
            with self.subTest(ranks=ranks):
                report, table = self.bench(*arguments, ranks=ranks)
                self.check(report, [1, 5, 2], 33, 9, 2, ranks or 1)
                hashes.append([entry["runs"][0]["tokens_hash"] for entry in report["batches"]])
                if ranks in (None, 1):  # all prompts together, 10 tokens of each at a time
                    self.assertEqual({4 + 8}, {run["steps"] for entry in report["batches"]
                                               for run in entry["runs"]})
                lines = [line.split() for line in table.splitlines()]
                self.assertEqual(["1", "5", "2"], [line[0] for line in lines[3:6]])
                self.assertEqual(10, len(lines[3]))
        self.assertEqual(hashes[:1] * 4, hashes)
        self.assertEqual(3, len(set(hashes[0])))

    def test_families_seeds_and_single_tokens(self):
        hashes = set()
        for model, seed in (("synthetic:tiny-opt", 0), ("synthetic:tiny-qwen2", 0),
                            ("synthetic:tiny-qwen2", 1)):
            report, table = self.bench("--model", model, "--batch", 3, "--prompt-tokens", 5,
                                       "--generate-tokens", 1, "--seed", seed)
            self.check(report, [3], 5, 1, 1, 1)
            self.assertIsNone(report["batches"][0]["decode_tokens_per_s"])
            self.assertIn(" - ", table)
            hashes.add(report["batches"][0]["runs"][0]["tokens_hash"])
        self.assertEqual(3, len(hashes))

    def test_many_sequences_share_slots_with_nobody(self):
        report, _ = self.bench("--model", LLAMA, "--batch", "1200,1", "--prompt-tokens", 3,
                               "--generate-tokens", 2, ranks=2)
        self.check(report, [1200, 1], 3, 2, 1, 2)

    def test_config_file(self):
        config = self.folder / "bench.toml"
        config.write_text('model = "synthetic:tiny-llama"\nbatch = [2, 1]\nprompt-tokens = 4\n'
                          "generate-tokens = 3\n")
        report, _ = self.bench("--config", config)
        self.check(report, [2, 1], 4, 3, 1, 1)

    def test_real_model(self):
        model = harness.real_model(harness.SMOL)
        arguments = ("--model", model, "--batch", "1,4", "--prompt-tokens", 32,
                     "--generate-tokens", 8)
        one, _ = self.bench(*arguments, limit=120)
        two, _ = self.bench(*arguments, "--threads", 1, ranks=2, limit=120)
        self.check(one, [1, 4], 32, 8, 1, 1)
        self.check(two, [1, 4], 32, 8, 1, 2)
        for a, b in zip(one["batches"], two["batches"]):
            self.assertEqual(a["runs"][0]["tokens_hash"], b["runs"][0]["tokens_hash"])


class Mistakes(BenchTest):
    def refused(self, code, *arguments, says, ranks=None):
        path = self.folder / "bench.json"
        job = self.run_program("bench", "--json", path, *arguments, expect=code, ranks=ranks)
        for text in says:
            self.assertIn(text, job.log())
        self.assertEqual("", job.stdout())
        self.assertFalse(path.exists())

    def test_batches(self):
        for batches in ("0", "1,,2", "1,x", "-1", ""):
            with self.subTest(batches=batches):
                self.refused(harness.USAGE, "--model", LLAMA, f"--batch={batches}", says=["--batch"])
        self.refused(harness.USAGE, "--model", LLAMA, "--batch", 70000, says=["65536"])

    def test_longer_than_the_context(self):
        self.refused(harness.USAGE, "--model", LLAMA, "--prompt-tokens", 500, "--generate-tokens",
                     13, says=["513", "512"])

    def test_a_batch_that_does_not_fit(self):
        for ranks in (None, 2):
            self.refused(DOES_NOT_FIT, "--model", LLAMA, "--batch", "1,900", "--prompt-tokens", 300,
                         "--host-memory", "40MiB", "--disk-budget", 0, ranks=ranks,
                         says=["batch 900", "budget", "up to", "--host-memory"])

    def test_a_model_that_does_not_fit(self):
        self.refused(DOES_NOT_FIT, "--model", "synthetic:smollm2-135m", "--host-memory", "2MiB",
                     says=["needed", "budget", "--host-memory"])

    def test_json_that_cannot_be_written(self):
        for path in (self.folder / "no" / "x.json", self.folder):
            self.run_program("bench", "--model", LLAMA, "--json", path, expect=harness.USAGE)
        full = self.folder / "full"  # by a link, which is all that a mistake could remove
        full.symlink_to("/dev/full")
        job = self.run_program("bench", "--model", LLAMA, "--batch", 1, "--prompt-tokens", 3,
                               "--generate-tokens", 2, "--json", full, expect=IO)
        self.assertIn(str(full), job.log())
        self.assertIn("rank 0 on", job.stdout())
        self.assertTrue(full.is_symlink(), "what was there before was removed")

    def test_earlier_figures_stay_until_there_are_new_ones(self):
        path = self.folder / "old.json"
        path.write_text("old figures, longer than nothing")
        self.run_program("bench", "--json", path, "--model", LLAMA, "--prompt-tokens", 600,
                         expect=harness.USAGE)
        self.assertEqual("old figures, longer than nothing", path.read_text())

    def test_an_interrupt_keeps_the_runs_that_are_done(self):
        for ranks in (None, 2):
            path = self.folder / f"{ranks}.json"
            job = self.start("bench", "--model", LLAMA, "--batch", 2, "--repeat", 1000000,
                             "--prompt-tokens", 3, "--generate-tokens", 2, "--json", path, ranks=ranks)
            job.await_log("batch 2:", times=3)
            victim = job.process.pid if ranks is None else job.rank_process(0)
            os.kill(victim, signal.SIGINT)
            self.assertNotEqual(0, job.wait())
            report = json.loads(path.read_text())
            self.assertFalse(report["complete"])
            self.assertGreaterEqual(len(report["batches"][0]["runs"]), 3)
            self.assertIn("interrupted", job.stdout())


if __name__ == "__main__":
    harness.main()
