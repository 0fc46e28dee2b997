"""Same tokens wherever weights and KV cache lie (promise 1, with --host-memory and --kv-memory).

Budgets are not fixed numbers: the least one is what a refusal advises, others follow from it. That
a run really read weights and KV pages from disk is taken from its report.
"""
import json
import math
import re

import harness
import same_tokens_test
import wide_models

DOES_NOT_FIT = 73
PAGE_TOKENS = 16
KV_SHARE = 0.5  # of the KV cache of a usual batch, as far as it may be in memory

FORMATS = ("", "--weights q8 --kv q8", "--weights q4 --kv q4")
OPTIONS = {
    "place": ("half", "least", "kv", "both"), "schedule": ("overlapped", "serial"),
    "batch": (12, 24), "ranks": (None, 2, 3), "threads": (1, 2), "chunk": (30, 100, "all"),
    "way": ("plain", "resume"), "formats": FORMATS,
}


def tokens_of(requests):
    """Prompt and generated tokens of each request, least first."""
    return sorted(len(r["prompt"]) + r["max_tokens"] for r in requests)


def long_requests(vocabulary, count=24, length=380):
    """Token ids; every other prompt is long, so that its pages fill the KV cache."""
    requests = same_tokens_test.id_requests(vocabulary, count)
    for i, request in enumerate(requests):
        tail = [(17 * i + 5 * k) % vocabulary for k in range(length * (i % 2))]
        request.update(prompt=request["prompt"][:16] + tail, max_tokens=1 + request["max_tokens"] % 20)
    return requests


class Offloading(same_tokens_test.SameTokens):
    def setUp(self):
        super().setUp()
        self.least, self.seen = {}, set()

    def shape_of(self, run, layers):
        """Arguments that decide what a stage needs."""
        ranks = run["ranks"] or 1
        return ["--max-batch", run["batch"], "--prefill-chunk", run["chunk"],
                "--threads", run["threads"], "--disk", self.folder / "disk",
                "--split", ",".join([str(layers // ranks)] * ranks), *run["formats"].split()]

    def least_memory(self, model, layers, requests, run):
        """(MiB that refusals advise: of rank 0, which keeps a tokenizer and requests, and of the rest;
        MiB of the weights of the largest stage)"""
        key = str(model), run["ranks"], run["chunk"], run["formats"]
        if key not in self.least:
            least, weights = [1, 1], 0
            while True:
                memory, ranks = self.memory_of(run, least)
                job = self.run_program("plan", "--model", model, "--tokens", tokens_of(requests)[-1],
                                       "--peer-timeout", 5, *self.shape_of(run, layers), *memory,
                                       ranks=ranks, expect=None)
                if job.process.returncode == harness.DONE:
                    break
                self.assertEqual(DOES_NOT_FIT, job.process.returncode, job.log())
                before = list(least)
                for rank, text in re.findall(r"(?s)(?:rank (\d) [^]]*\] )?host memory is too small"
                                             r"(.*? machine has it)", job.log()):
                    advised = int(re.search(r"--host-memory (\d+)MiB", text)[1])
                    least[int(rank or 0) > 0] = max(advised, least[int(rank or 0) > 0])
                    weights = max([weights, *map(float, re.findall(r" of ([\d.]+) MiB, the rest", text))])
                self.assertNotEqual(before, least, job.log())
            self.least[key] = least, math.ceil(weights)
        return self.least[key]

    def memory_of(self, run, budgets):
        """(arguments, ranks) for budgets in MiB, of rank 0 and of the rest."""
        if run["ranks"] is None:
            return ["--host-memory", f"{budgets[0]}MiB"], None
        return [], [["--host-memory", f"{budgets[rank > 0]}MiB"] for rank in range(run["ranks"])]

    def kv_bytes(self, model, run, requests):
        """What the KV cache of a stage would take in memory."""
        text = self.run_program("inspect", model, *run["formats"].split()).stdout()
        number, unit = re.search(r"KV cache +([\d.]+) (KiB|B) per token", text).groups()
        of_token = float(number) * {"B": 1, "KiB": 1024}[unit] / (run["ranks"] or 1)
        usual = tokens_of(requests)[len(requests) * 9 // 10]
        return run["batch"] * math.ceil(usual / PAGE_TOKENS) * PAGE_TOKENS * of_token

    def arguments_of(self, model, layers, requests, run):
        """(arguments, ranks) of a run."""
        arguments, ranks, kv = [*self.shape_of(run, layers), "--schedule", run["schedule"]], run["ranks"], 0
        if run["place"] in ("kv", "both"):
            kv = math.ceil(KV_SHARE * self.kv_bytes(model, run, requests) / 2**10)
            arguments += ["--kv-memory", f"{kv}KiB"]
        if run["place"] in ("least", "half", "both"):
            least, weights = self.least_memory(model, layers, requests, run)
            more = {"least": 0, "half": weights // 2, "both": math.ceil(kv / 1024) + weights // 8}[run["place"]]
            memory, ranks = self.memory_of(run, [mebibytes + more for mebibytes in least])
            arguments += memory
        return arguments, ranks

    def check_place(self, run, report):
        """That the run put things where its name says."""
        moved = [stage["moved"] for stage in json.loads(report.read_text())["stages"]]
        on_disk = {key for key in ("weights_in", "kv_out", "kv_in")
                   for stage in moved if stage[key]["bytes"] > 0}
        least = {"half": {"weights_in"}, "least": {"weights_in"}, "kv": {"kv_out", "kv_in"},
                 "both": {"kv_out", "kv_in"}, "memory": set()}[run["place"]]
        self.assertLessEqual(least, on_disk, run)
        if run["place"] in ("memory", "kv"):
            self.assertEqual(least, on_disk, run)
        self.seen.add(frozenset(on_disk))

    def run_offloaded(self, model, layers, requests, run):
        arguments, ranks = self.arguments_of(model, layers, requests, run)
        report = self.folder / f"report{len(self.jobs)}.json"
        output = self.folder / f"out{len(self.jobs)}.jsonl"
        if run["place"] == "least":  # one at a time, and every step reads nearly the whole model
            requests = requests[:6]
        if run["way"] == "resume":
            self.generate(model, requests[:3], *arguments, ranks=ranks, output=output)
            arguments += ["--resume"]
        results = self.generate(model, requests, *arguments, "--report", report, ranks=ranks,
                                output=output, limit=120)
        self.assertEqual(len(requests), len(results))
        self.check_place(run, report)
        return results

    def check_offloaded(self, model, layers, requests, runs):
        """Every run against one with everything in memory, of the same formats."""
        expected = {}
        for run in runs:
            formats = run["formats"]
            if formats not in expected:
                memory = dict(run, place="memory", batch=5, chunk=100, ranks=None, way="plain", threads=2)
                expected[formats] = self.run_offloaded(model, layers, requests, memory)
                self.assertFalse([r for r in expected[formats].values()
                                  if r["response"]["status_code"] != 200])
            results = self.run_offloaded(model, layers, requests, run)
            same = {name: expected[formats][name] for name in results}
            self.assert_same_results(same, results, str(run))
        print(f"{model}: {len(runs)} ways, {len(requests)} requests each", flush=True)
        return expected


class WideModels(Offloading):
    def test_every_family(self):
        families = tuple(wide_models.CONFIGS)
        # With little in a stage, few sequences never fill the KV cache.
        runs = same_tokens_test.covering_runs(
            dict(OPTIONS, family=families),
            lambda run: run["batch"] == 24 or (run["ranks"] or 1) < 3)
        requests = long_requests(wide_models.VOCABULARY)
        for family in families:
            model = wide_models.write(self.folder / family, family)
            expected = self.check_offloaded(model, wide_models.LAYERS, requests,
                                            [run for run in runs if run["family"] == family])
            logprobs = {json.dumps([harness.choices(r) for r in results.values()])
                        for results in expected.values()}
            self.assertEqual(len(logprobs), len(FORMATS))
        self.assertIn({"weights_in", "kv_out", "kv_in"}, self.seen)

    def test_killed_and_resumed_elsewhere(self):
        """Killed while it reads from disk; goes on with other budgets and ranks."""
        model, layers = wide_models.write(self.folder / "llama", "llama"), wide_models.LAYERS
        requests = [dict(r, max_tokens=40 + r["max_tokens"])
                    for r in long_requests(wide_models.VOCABULARY)]
        common = dict(schedule="overlapped", batch=12, threads=1, chunk=100, way="plain", formats="")
        memory, *ways = [dict(common, place=place, ranks=ranks) for place, ranks in
                         (("memory", None), ("least", None), ("least", 2), ("half", None))]
        expected = self.run_offloaded(model, layers, requests, memory)
        batch, output = self.folder / "in.jsonl", self.folder / "killed.jsonl"
        harness.write_requests(batch, requests)
        done = 0
        for run in ways:
            arguments, ranks = self.arguments_of(model, layers, requests, run)
            job = self.start("generate", "--model", model, "--input", batch, "--output", output,
                             "--token-ids", "--resume", *arguments, ranks=ranks)
            job.await_lines(output, done + 1)
            self.assertIsNone(job.process.poll(), "over before it was killed")
            job.kill()
            job.await_no_process()
            done = output.read_bytes().count(b"\n")
        self.assertLess(done, len(requests))
        arguments, _ = self.arguments_of(model, layers, requests, dict(memory, place="kv"))
        results = self.generate(model, requests, "--resume", *arguments, output=output)
        self.assert_same_results(expected, results)


    def test_ranks_with_unequal_memory(self):
        """Without --max-batch each has room for another number of sequences and rows of a step."""
        model = wide_models.write(self.folder / "llama", "llama")
        requests = long_requests(wide_models.VOCABULARY, 40)
        run = dict(place="memory", schedule="overlapped", batch=24, ranks=2, threads=1, chunk=100,
                   way="plain", formats="")
        expected = self.run_offloaded(model, wide_models.LAYERS, requests, dict(run, ranks=None))
        least, weights = self.least_memory(model, wide_models.LAYERS, requests, run)
        for more in ((weights, 0), (0, weights), (weights // 4, 1)):
            _, ranks = self.memory_of(run, [a + b for a, b in zip(least, more)])
            results = self.generate(model, requests, "--disk", self.folder / "disk", "--threads", 1,
                                    ranks=ranks, limit=120)
            self.assert_same_results(expected, results, str(more))
            self.assertIn("read per step", self.jobs[-1].log())


class RealModel(Offloading):
    # That any two settings meet is for the models above.
    WAYS = (("half", None, "overlapped"), ("least", 2, "serial"), ("kv", 3, "overlapped"),
            ("both", 2, "overlapped"))

    def test_smollm2(self):
        runs = [dict(place=place, ranks=ranks, schedule=schedule, batch=12, chunk=(64, 100)[i % 2],
                     threads=1 + i % 2, way=("plain", "resume")[i % 2], formats="")
                for i, (place, ranks, schedule) in enumerate(self.WAYS)]
        self.check_offloaded(harness.real_model(harness.SMOL), 30, long_requests(40000, 12, 150), runs)


if __name__ == "__main__":
    harness.main()
