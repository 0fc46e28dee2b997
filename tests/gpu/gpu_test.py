"""Whole runs on a GPU. Skipped where there is none.

With --math f32 every bit is a CPU's: tokens, log-probabilities, what is sampled. With f16, the
default, it is the same however it runs, and near the goldens.
"""
import os
import pathlib
import signal
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "mp"))
import harness  # noqa: E402
import same_tokens_test  # noqa: E402

RESOURCE_MISSING = 69
CUDA = ("--device", "cuda")
TINY = [harness.TINY / name for name in ("llama-gqa", "qwen2-tied", "opt-pre", "opt-post")]
LARGE_VOCABULARY = 40000


def requests_of(vocabulary, count=12):
    return same_tokens_test.id_requests(vocabulary, count)


class Gpu(harness.ProgramTest):
    @classmethod
    def setUpClass(cls):
        job = harness.Job(["plan", "--model", "synthetic:tiny-llama", *CUDA])
        if job.wait() == RESOURCE_MISSING:
            raise unittest.SkipTest(job.log().strip())

    def check_same(self, model, requests, expected, ways):
        for way in ways:
            ranks, way = (way[0], way[1:]) if way and not isinstance(way[0], str) else (None, way)
            results = self.generate(model, requests, *way, ranks=ranks, limit=120)
            self.assert_same_results(expected, results, f"{getattr(model, 'name', model)} {way} on {ranks or 1}")


class Float32(Gpu):
    """The bits of a CPU."""

    def test_tiny_models(self):
        for model in TINY:
            requests = requests_of(300)
            expected = self.generate(model, requests, "--device", "cpu")
            self.check_same(model, requests, expected, [
                (*CUDA, "--math", "f32"),
                (*CUDA, "--math", "f32", "--max-batch", 3, "--prefill-chunk", 7, "--device-weights", 0),
                (2, *CUDA, "--math", "f32", "--max-batch", 5),
                ([["--device", "cpu"], ["--device", "cuda"]], "--math", "f32"),
                ([["--device", "cuda"], ["--device", "cpu"]], "--math", "f32", "--prefill-chunk", 9),
            ])

    def test_formats(self):
        model = TINY[0]
        for formats in (("--kv", "q8"), ("--kv", "q4"), ("--kv", "f32"), ("--weights", "q4", "--kv", "q8"),
                        ("--weights", "q8")):
            requests = requests_of(300, 7)
            expected = self.generate(model, requests, "--device", "cpu", *formats)
            self.check_same(model, requests, expected, [(*CUDA, "--math", "f32", *formats)])

    def test_a_larger_model(self):
        model, requests = "synthetic:qwen2.5-0.5b", requests_of(LARGE_VOCABULARY, 6)
        expected = self.generate(model, requests, "--device", "cpu", limit=240)
        self.check_same(model, requests, expected, [(*CUDA, "--math", "f32")])


class Float16(Gpu):
    """The same however it runs."""

    def ways(self, little):
        return [(*CUDA, "--max-batch", batch) for batch in (1, 4, 16, 64)] + [
            (*CUDA, "--max-batch", 5, "--prefill-chunk", 7),
            (*CUDA, "--max-batch", 7, "--device-weights", 0),
            (*CUDA, "--device-memory", little),
            (2, *CUDA, "--max-batch", 6),
        ]

    def check(self, model, vocabulary, little, *formats):
        requests = requests_of(vocabulary)
        expected = self.generate(model, requests, *CUDA, *formats, limit=120)
        self.check_same(model, requests, expected, [(*way, *formats) for way in self.ways(little)])

    def test_tiny_models(self):
        for model in TINY:
            self.check(model, 300, "760MiB")

    def test_formats(self):
        for formats in (("--weights", "q4"), ("--kv", "q8"), ("--weights", "q8", "--kv", "q4")):
            self.check(TINY[0], 300, "760MiB", *formats)

    def test_larger_models(self):
        self.check("synthetic:qwen2.5-0.5b", LARGE_VOCABULARY, "1300MiB")
        self.check("synthetic:opt-350m", LARGE_VOCABULARY, "1100MiB")

    def test_after_a_resume(self):
        model, requests = TINY[0], requests_of(300)
        expected = self.generate(model, requests, *CUDA)
        output = self.folder / "resumed.jsonl"
        self.generate(model, requests[:5], *CUDA, output=output)
        results = self.generate(model, requests, *CUDA, "--resume", "--max-batch", 3, output=output)
        self.assert_same_results(expected, results)

    def test_near_the_cpu(self):
        """The most likely tokens, with log-probabilities near those of float32."""
        for model in TINY:
            requests = [{"custom_id": str(i), "prompt": r["prompt"], "max_tokens": 1, "logprobs": 5}
                        for i, r in enumerate(requests_of(300))]
            exact = self.generate(model, requests, "--device", "cpu", "--kv", "f32")
            coarse = self.generate(model, requests, *CUDA)
            for name, record in exact.items():
                old, new = (harness.choices(r)[0]["logprobs"]["top_logprobs"][0] for r in (record, coarse[name]))
                common = [abs(new[token] - value) for token, value in old.items() if token in new]
                self.assertGreaterEqual(len(common), 4, f"{model.name} {name}: {old} became {new}")
                self.assertLess(max(common), 0.05, f"{model.name} {name}")


class RealModels(Gpu):
    def check(self, model, golden, math):
        prompts = golden["prompts"]
        requests = [{"custom_id": p["name"], "prompt": p["prompt_ids"], "ignore_eos": True, "logprobs": 5,
                     "max_tokens": len(p["continuation_ids"])} for p in prompts]
        results = self.generate(model, requests, *CUDA, "--math", math, limit=240)
        for prompt in prompts:
            tokens, expected = harness.token_ids(results[prompt["name"]]), prompt["continuation_ids"]
            if tokens == expected:
                continue
            at = next(i for i, (a, b) in enumerate(zip(tokens, expected)) if a != b)
            logprobs = harness.choices(results[prompt["name"]])[0]["logprobs"]["top_logprobs"][at]
            best = sorted(logprobs.values(), reverse=True)
            print(f"{model.name} {math}: {prompt['name']} goes another way at token {at}: {logprobs}")
            self.assertLess(best[0] - best[1], 0.05, f"{prompt['name']}: no near-tie at token {at}")

    def test_smollm2(self):
        for math in ("f32", "f16"):
            self.check(harness.real_model(harness.SMOL), harness.golden("smol.json"), math)

    def test_qwen(self):
        for math in ("f32", "f16"):
            self.check(harness.real_model(harness.QWEN), harness.golden("qwen.json"), math)


class BadInput(Gpu):
    def test_no_such_gpu(self):
        job = self.run_program("bench", "--model", "synthetic:tiny-llama", "--device", "cuda:99",
                               expect=RESOURCE_MISSING)
        self.assertIn("cuda:99", job.log())

    def test_too_little_device_memory(self):
        job = self.run_program("bench", "--model", "synthetic:opt-1.3b", *CUDA, "--device-memory", "300MiB",
                               "--batch", 4, expect=harness.DOES_NOT_FIT)
        self.assertIn("--device-memory", job.log())

    def test_a_gpu_rank_that_is_killed(self):
        requests = [{"custom_id": str(i), "prompt": [5, 6, 7, 8], "max_tokens": 400, "ignore_eos": True}
                    for i in range(40)]
        model = "synthetic:tiny-llama"
        batch, output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        harness.write_requests(batch, requests)
        arguments = ("generate", "--model", model, "--input", batch, "--output", output, "--token-ids",
                     *CUDA, "--max-batch", 4)
        job = self.start(*arguments, ranks=2)
        job.await_lines(output, 2)
        os.kill(job.rank_process(1), signal.SIGKILL)
        self.assertNotEqual(job.wait(60), harness.DONE)
        time.sleep(0.5)
        self.run_program(*arguments, "--resume", ranks=2)
        expected = self.generate(model, requests, *CUDA)
        self.assert_same_results(expected, harness.read_results(output))


if __name__ == "__main__":
    harness.main()
