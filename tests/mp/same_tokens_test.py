"""Same tokens however it runs (promise 1).

One batch, run in many ways; ids, texts, finish reasons and the bits of every log-probability must
equal the first run's. The ways are chosen so that any two settings of different options meet in at
least one run.
"""
import itertools
import json
import random

import harness


def covering_runs(options, possible=lambda run: True):
    """Runs (option: value) in which every pair of values that can go together does."""
    names = list(options)
    pairs = set()
    everything = [dict(zip(names, values)) for values in itertools.product(*options.values())]
    everything = [run for run in everything if possible(run)]

    def pairs_of(run):
        return {frozenset([(a, run[a]), (b, run[b])]) for a, b in itertools.combinations(names, 2)}

    for run in everything:
        pairs |= pairs_of(run)
    random.Random(3).shuffle(everything)
    chosen = []
    while pairs:
        best = max(everything, key=lambda run: len(pairs_of(run) & pairs))
        pairs -= pairs_of(best)
        chosen.append(best)
    return chosen


OPTIONS = {
    "batch": (1, 3, 16), "ranks": (None, 1, 2, 3, 4), "threads": (1, 2), "chunk": (7, 64, "all"),
    "order": ("longest", "input"), "way": ("plain", "resume", "split"),
}


def arguments_of(run):
    return ["--max-batch", run["batch"], "--threads", run["threads"], "--prefill-chunk", run["chunk"],
            "--order", run["order"], "--target", run["target"], *run.get("formats", "").split()]


def lopsided_split(layers, ranks):
    """All layers but the least possible on the first stage."""
    return ",".join(map(str, [layers - ranks + 1] + [1] * (ranks - 1)))


class SameTokens(harness.ProgramTest):
    def run_one_way(self, model, layers, requests, run):
        arguments = arguments_of(run)
        output = self.folder / f"way{len(self.jobs)}.jsonl"
        if run["way"] == "split":
            arguments += ["--split", lopsided_split(layers, run["ranks"] or 1)]
        if run["way"] == "resume":  # the first half, then the whole file
            half = self.generate(model, requests[:len(requests) // 2], *arguments, ranks=run["ranks"],
                                 output=output, limit=120)
            self.assertEqual(len(half), len(requests) // 2)
            arguments += ["--resume"]
        return self.generate(model, requests, *arguments, ranks=run["ranks"], output=output, limit=120)

    def check_runs(self, model, layers, requests, runs, expected):
        for run in runs:
            results = self.run_one_way(model, layers, requests, run)
            self.assert_same_results(expected, results, f"{getattr(model, 'name', model)}: {run}")
        print(f"{model}: {len(runs)} ways, {len(requests)} requests each", flush=True)


# ---- SmolLM2: texts, chat and stop strings ----

WORDS = ("the river runs past old mill wheels and no wheel waits for water while stones turn grain "
         "into flour every day of the year until winter comes and ice stops everything").split()


def prose(seed, words):
    return " ".join(random.Random(seed).choice(WORDS) for _ in range(words))


def text_requests():
    chat = [{"role": "user", "content": "Name three colours of the rainbow."}]
    requests = [
        {"prompt": "The", "max_tokens": 12, "logprobs": 2},
        {"prompt": "The capital of France is", "max_tokens": 12, "logprobs": 5},
        {"prompt": prose(1, 90), "max_tokens": 6, "logprobs": 1},
        {"prompt": prose(2, 70), "max_tokens": 9, "temperature": 0.7, "seed": 11},
        {"prompt": prose(3, 33), "max_tokens": 7, "top_k": 40, "temperature": 1.0, "logprobs": 3},
        {"prompt": prose(4, 31), "max_tokens": 14, "top_p": 0.9, "temperature": 0.9, "seed": 5},
        {"prompt": "Once upon a time", "max_tokens": 16, "min_p": 0.05, "temperature": 1.2, "n": 2,
         "logprobs": 2},
        {"prompt": "la la la la la", "max_tokens": 12, "repetition_penalty": 1.3, "logprobs": 0},
        {"prompt": "One, two, three,", "max_tokens": 20, "stop": [" six", "\n\n"]},
        {"prompt": "def add(a, b):", "max_tokens": 18, "stop": "return"},
        {"prompt": "Yes or no?", "max_tokens": 5, "logit_bias": {"28": 4.5, "198": -100}, "logprobs": 4},
        {"messages": chat, "max_tokens": 14, "logprobs": True, "top_logprobs": 2},
        {"messages": [{"role": "system", "content": "You are terse."}, *chat], "max_tokens": 10},
        {"messages": chat, "max_tokens": 10, "temperature": 0.8, "top_p": 0.95, "n": 2, "seed": 3},
        {"prompt": [1, 504, 3575], "max_tokens": 8, "ignore_eos": True, "logprobs": 2},
        {"prompt": "Grüße aus 東京 🚂", "max_tokens": 10, "temperature": 1.0, "logprobs": 2, "seed": 8},
        {"prompt": prose(5, 17), "max_tokens": 1, "logprobs": 5},
        {"prompt": "A", "max_tokens": 24, "temperature": 0.5, "top_k": 5, "repetition_penalty": 1.1},
    ]
    return [{"custom_id": f"r{i}", **request} for i, request in enumerate(requests)]


class RealModel(SameTokens):
    LAYERS = 30

    def test_smollm2(self):
        model = harness.real_model(harness.SMOL)
        requests = text_requests()
        fast = [t for t in harness.targets() if t != "scalar"]
        # The other numbers of ranks are tried with the tiny models.
        runs = covering_runs(dict(OPTIONS, ranks=(None, 2, 4), target=tuple(fast)))
        self.check_variety(expected := self.run_one_way(model, self.LAYERS, requests, runs[0]))
        self.check_runs(model, self.LAYERS, requests, runs[1:], expected)
        # The scalar path is slow: a few short requests.
        short = [dict(request, max_tokens=2) for request in requests if len(str(request)) < 120][:5]
        self.check_runs(model, self.LAYERS, short, [dict(runs[0], target="scalar", ranks=2, way="plain")],
                        self.run_one_way(model, self.LAYERS, short, runs[0]))

    def check_variety(self, results):
        """That the batch is worth comparing: every kind of end, more than one text for n=2."""
        ends = {choice["finish_reason"] for r in results.values() for choice in harness.choices(r)}
        self.assertEqual(ends, {"stop", "length"})
        first, second = (harness.token_ids(results["r6"], i) for i in (0, 1))
        self.assertNotEqual(first, second)
        self.assertFalse([r for r in results.values() if r["response"]["status_code"] != 200])


# ---- tiny models: every family, every target ----

def id_requests(vocabulary, count=20):
    rng = random.Random(9)
    requests = []
    for i in range(count):
        request = {"custom_id": f"r{i}", "max_tokens": rng.randint(1, 30), "logprobs": i % 4,
                   "prompt": [rng.randrange(3, vocabulary) for _ in range(rng.choice((1, 5, 16, 33, 90)))]}
        if i % 2:
            request.update(temperature=rng.choice((0.3, 0.8, 1.5)), seed=rng.randrange(1 << 40))
        request.update([{}, {"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.1}, {"n": 2},
                        {"repetition_penalty": 1.2}, {"logit_bias": {"7": 3.5}}][i % 7])
        requests.append(request)
    return requests


TINY_LAYERS = {
    **{str(harness.TINY / name): layers for name, layers in (
        ("llama-gqa", 3), ("llama-linear-bias", 2), ("llama-rope3.Q4_1.gguf", 2), ("qwen2-tied", 2),
        ("qwen2-untied", 2), ("qwen3-tied", 2), ("opt-pre", 2), ("opt-post", 2))},
    "synthetic:tiny-opt": 4, "synthetic:tiny-llama:q8": 3,
}


QUANTISABLE = {str(harness.TINY / "llama-gqa"): 3, "synthetic:tiny-opt": 4}
FORMATS = ("--weights q8 --kv q4", "--weights q4 --kv f16 --math int8", "--weights q4 --kv q8", "--kv q4")


class TinyModels(SameTokens):
    def test_tiny_models(self):
        options = dict(OPTIONS, target=tuple(harness.targets()), model=tuple(TINY_LAYERS))
        runs = covering_runs(options, lambda run: (run["ranks"] or 1) <= TINY_LAYERS[run["model"]])
        for model, layers in TINY_LAYERS.items():
            self.check_model(model, layers, [run for run in runs if run["model"] == model])

    def test_quantised_weights_and_kv(self):
        """What a format gives does not depend on the run either; and no two formats give the same."""
        options = dict(OPTIONS, target=tuple(harness.targets()), formats=FORMATS,
                       model=tuple(QUANTISABLE))
        runs = covering_runs(options, lambda run: (run["ranks"] or 1) <= QUANTISABLE[run["model"]])
        for model, layers in QUANTISABLE.items():
            seen = []
            for formats in FORMATS:
                own = [run for run in runs if (run["model"], run["formats"]) == (model, formats)]
                plain = dict(own[0], ranks=None, batch=1, way="plain")
                seen.append(self.check_model(model, layers, [plain, *own]))
            logprobs = {json.dumps([harness.choices(r) for r in results.values()]) for results in seen}
            self.assertEqual(len(logprobs), len(FORMATS))

    def check_model(self, model, layers, runs):
        requests = id_requests(300)
        self.assertTrue([run for run in runs if run != runs[0]], "nothing to compare")
        expected = self.run_one_way(model, layers, requests, runs[0])
        self.assertEqual(len(expected), len(requests))
        self.check_runs(model, layers, requests, runs[1:], expected)
        return expected


if __name__ == "__main__":
    harness.main()
