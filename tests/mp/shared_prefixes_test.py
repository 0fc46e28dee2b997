"""Prompts that begin alike: computed once, and the same results as when each is computed."""
import json
import pathlib
import random

import harness
import same_tokens_test

PAGE = 16
MODELS = {"synthetic:tiny-llama:q8": 3, str(harness.TINY / "qwen2-tied"): 2, "synthetic:tiny-opt": 4}


def few_shot_requests(vocabulary, count=24):
    """A system prompt, then one of three sets of examples, then a question; some with samples."""
    rng = random.Random(4)
    draw = lambda tokens: [rng.randrange(3, vocabulary) for _ in range(tokens)]
    system = draw(48)
    shots = [draw(40) for _ in range(3)]
    requests = []
    for i in range(count):
        request = {"custom_id": f"r{i}", "max_tokens": rng.randint(1, 20), "logprobs": i % 4,
                   "prompt": system + shots[i % 3] + draw(rng.choice((1, 5, 8, 40)))}
        if i % 3 == 1:
            request.update(n=4, temperature=rng.choice((0.5, 1.2)), seed=rng.randrange(1 << 40))
        request.update([{}, {"repetition_penalty": 1.3}, {"top_p": 0.9, "temperature": 0.8}, {}][i % 4])
        requests.append(request)
    return requests


def least_computed(requests):
    """Prompt tokens that remain where every page of a common beginning is computed once."""
    pages, tokens = set(), 0
    for request in requests:
        prompt = request["prompt"]
        shareable = (len(prompt) - 1) // PAGE
        tokens += request.get("n", 1) * (len(prompt) - shareable * PAGE)
        pages |= {tuple(prompt[:(page + 1) * PAGE]) for page in range(shareable)}
    return tokens + len(pages) * PAGE


def prompt_tokens(requests):
    return sum(request.get("n", 1) * len(request["prompt"]) for request in requests)


class SharedPrefixes(same_tokens_test.SameTokens):
    def run_way(self, model, requests, *arguments, **options):
        """The results and the report's counts of tokens."""
        report = self.folder / f"report{len(self.jobs)}.json"
        results = self.generate(model, requests, "--report", report, *arguments, limit=120, **options)
        report = json.loads(report.read_text())
        tokens = report["tokens"]
        for stage in report["stages"]:
            self.assertEqual(tokens["prompt"] - tokens["shared"], stage["prefill_rows"])
        return results, tokens

    def sorted_lines(self, path):
        """A results file without the times in it."""
        records = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
        for record in records:
            record["response"]["body"].pop("created")
        return sorted(json.dumps(record) for record in records)


class TinyModels(SharedPrefixes):
    def test_whatever_is_shared_results_are_the_same(self):
        requests = few_shot_requests(300)
        most, least = prompt_tokens(requests), least_computed(requests)
        self.assertLess(least, most / 2)
        ways = list(same_tokens_test.covering_runs(
            {"batch": (1, 4, 16), "ranks": (None, 1, 2), "chunk": (40, "all"), "threads": (1, 2),
             "order": ("input", "longest"), "model": tuple(MODELS)}))
        for model in MODELS:
            apart = self.folder / "apart.jsonl"
            _, tokens = self.run_way(model, requests, "--share-prefixes", "off", "--max-batch", 3,
                                     "--threads", 1, output=apart)
            self.assertEqual({"prompt": most, "shared": 0, "generated": tokens["generated"]}, tokens)
            expected = self.sorted_lines(apart)
            for way in [way for way in ways if way["model"] == model]:
                together = self.folder / f"together{len(self.jobs)}.jsonl"
                _, tokens = self.run_way(model, requests, "--max-batch", way["batch"], "--threads",
                                         way["threads"], "--prefill-chunk", way["chunk"], "--order",
                                         way["order"], ranks=way["ranks"], output=together)
                with self.subTest(**way):
                    self.assertEqual(expected, self.sorted_lines(together))
                    self.assertEqual(most, tokens["prompt"])
                    computed = most - tokens["shared"]
                    if way["chunk"] == "all":
                        self.assertEqual(least, computed)
                    else:  # who comes when all but a page is there computes that
                        self.assertLess(computed, least * 1.5)
            apart.unlink()
            apart.with_name(apart.name + ".manifest.json").unlink()

    def test_a_resumed_run_shares_too(self):
        model = next(iter(MODELS))
        requests = few_shot_requests(300)
        expected, _ = self.run_way(model, requests, "--share-prefixes", "off")
        path = self.folder / "resumed.jsonl"
        self.run_way(model, requests[:9], "--max-batch", 4, output=path)
        results, tokens = self.run_way(model, requests, "--max-batch", 2, "--resume", output=path, ranks=2)
        self.assert_same_results(expected, results)
        self.assertEqual(prompt_tokens(requests[9:]), tokens["prompt"])
        self.assertGreater(tokens["shared"], tokens["prompt"] / 2)

    def test_pages_on_disk_are_not_shared_and_a_rank_says_so(self):
        model = "synthetic:tiny-opt"
        requests = few_shot_requests(300)
        expected, _ = self.run_way(model, requests, "--share-prefixes", "off")
        disk = ["--disk", self.folder / "disk", "--max-batch", 16]
        results, tokens = self.run_way(
            model, requests, *disk, ranks=[[], ["--kv-memory", "200KiB"]])
        self.assert_same_results(expected, results)
        self.assertEqual(0, tokens["shared"])
        self.assertIn("computed one by one: stage 2 has KV pages on disk", self.jobs[-1].log())


class RealModel(SharedPrefixes):
    def test_smollm2(self):
        """Few-shot texts and samples, and the whole of a prompt's tokens in its usage."""
        model = harness.real_model(harness.SMOL)
        system = {"role": "system", "content": same_tokens_test.prose(1, 120)}
        requests = [{"custom_id": f"r{i}", "max_tokens": 6, "logprobs": True, "n": 1 + 2 * (i % 2),
                     "temperature": i % 2, "seed": 7,
                     "messages": [system, {"role": "user", "content": same_tokens_test.prose(i + 2, 9)}]}
                    for i in range(8)]
        expected, apart = self.run_way(model, requests, "--share-prefixes", "off", "--max-batch", 16)
        self.assertEqual(0, apart["shared"])
        for batch, ranks in ((1, None), (5, 2)):
            results, tokens = self.run_way(model, requests, "--max-batch", batch, ranks=ranks)
            self.assert_same_results(expected, results)
            self.assertEqual(apart["prompt"], tokens["prompt"])
            self.assertGreater(tokens["shared"], 15 * 7 * PAGE)


if __name__ == "__main__":
    harness.main()
