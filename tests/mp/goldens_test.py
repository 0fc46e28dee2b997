"""Right tokens (promise 2): what Hugging Face transformers gives, through the whole program.

The program prints log-probabilities, which differ from logits by one constant per token: the five
best must be the same in the same order, and their differences within 2e-3. Absolute logits are
compared in unit/engine_logits_test.cpp.
"""
import json

import harness

TOLERANCE = 2e-3
LIMITS = {"--kv f16": 0.01, "--kv q8": 0.16, "--kv q4": 1.0, "--weights q8": 0.25, "--weights q4": 4.5}


def golden_requests(goldens):
    return [{"custom_id": str(i), "prompt": golden["prompt"], "ignore_eos": True, "logprobs": 5,
             "max_tokens": len(golden["greedy"])} for i, golden in enumerate(goldens)]


class Golden(harness.ProgramTest):
    def token_text(self, model, token):
        """How logprobs name a token."""
        return self.run_program("tokenize", "--model", model, "--decode", token).stdout()[:-1]

    def check_top5(self, record, top5, name_of, note):
        """`top5`: (id, logit), best first, of the first token."""
        logprobs = harness.choices(record)[0]["logprobs"]["top_logprobs"][0]
        values = [logprobs.get(name_of(token)) for token, _ in top5]
        self.assertNotIn(None, values, f"{note}: not the five best: {logprobs}")
        self.assertEqual(values, sorted(values, reverse=True), f"{note}: another order")
        for value, (token, logit) in zip(values, top5):
            expected = logit - top5[0][1]
            self.assertLess(abs((value - values[0]) - expected), TOLERANCE, f"{note}: token {token}")


class RealModels(Golden):
    def tokenize(self, model, text):
        return json.loads(self.run_program("tokenize", "--model", model, "--text", text).stdout())

    def check(self, model, golden):
        prompts = golden["prompts"]
        for prompt in prompts:
            self.assertEqual(self.tokenize(model, prompt["prompt"]), prompt["prompt_ids"], prompt["name"])
        for kv, most in (("f16", 48), ("f32", 12)):  # f32 is for the log-probabilities below
            wanted = {p["name"]: p["continuation_ids"][:most] for p in prompts}
            requests = [{"custom_id": p["name"], "prompt": p["prompt_ids"], "ignore_eos": True,
                         "logprobs": 5, "max_tokens": len(wanted[p["name"]])} for p in prompts]
            results = self.generate(model, requests, "--kv", kv, "--max-batch", 8, limit=240)
            for name, tokens in wanted.items():
                self.assertEqual(harness.token_ids(results[name]), tokens, f"{name} with --kv {kv}")
        for prompt in prompts:  # with --kv f32
            top5 = [(t["id"], t["logit"]) for t in prompt["top5"]]
            self.check_top5(results[prompt["name"]], top5, lambda t: self.token_text(model, t), prompt["name"])

    def test_smollm2_gguf(self):
        self.check(harness.real_model(harness.SMOL), harness.golden("smol.json"))

    def test_smollm2_safetensors(self):
        # Made by make_hf_directory.py, which needs transformers.
        self.check(harness.real_model("SmolLM2-135M-Instruct-hf"), harness.golden("smol.json"))

    def test_qwen_gguf(self):
        self.check(harness.real_model(harness.QWEN), harness.golden("qwen.json"))


class TinyModels(Golden):
    """Every family, from safetensors and from a GGUF file, by token ids."""

    def check(self, model, goldens, *arguments, ranks=None):
        results = self.generate(model, golden_requests(goldens), "--threads", 1, *arguments, ranks=ranks)
        note = f"{model.name} {arguments} on {ranks or 1} ranks"
        for i, golden in enumerate(goldens):
            record = results[str(i)]
            self.assertEqual(harness.token_ids(record), golden["greedy"], f"{note}: prompt {i}")
            if "f32" in arguments and not model.name.endswith(".F16.gguf"):  # that one is rounded
                self.check_top5(record, golden["top5"], lambda t: f"token_id:{t}", f"{note}: prompt {i}")

    def check_all_ways(self, model, goldens):
        for ranks in (None, 2):
            for kv in ("f32", "f16"):
                self.check(model, goldens, "--kv", kv, ranks=ranks)


class Quantised(Golden):
    """Coarser formats stay near the unquantised log-probabilities. Limits are about twice what was seen."""

    def most_off(self, model, goldens, *arguments):
        """The largest difference of the five best log-probabilities of any prompt's first token."""
        requests = [{"custom_id": str(i), "prompt": golden["prompt"], "max_tokens": 1, "logprobs": 5}
                    for i, golden in enumerate(goldens)]
        exact = self.generate(model, requests, "--kv", "f32")
        coarse = self.generate(model, requests, *arguments)
        worst = 0.0
        for name, record in exact.items():
            old, new = (harness.choices(r)[0]["logprobs"]["top_logprobs"][0] for r in (record, coarse[name]))
            common = [abs(new[token] - value) for token, value in old.items() if token in new]
            self.assertGreaterEqual(len(common), 1, f"{name}: {old} became {new}")
            worst = max(worst, *common)
        return worst

    def test_tiny_models(self):
        for name in ("llama-gqa", "opt-pre"):
            goldens = json.loads((harness.TINY / name / "goldens.json").read_text())["results"]
            seen = {}
            for formats in LIMITS:
                seen[formats] = self.most_off(harness.TINY / name, goldens, *formats.split())
            print(name, seen)
            for formats, limit in LIMITS.items():
                self.assertLess(seen[formats], limit, f"{name} with {formats}")
                self.assertGreater(seen[formats], 0, f"{name} with {formats} is not coarser at all")
            for option in ("--kv", "--weights"):
                self.assertLess(3 * seen[f"{option} q8"], seen[f"{option} q4"], f"{name} {option}")


def add_tiny_tests():
    folders = sorted(path.parent for path in harness.TINY.glob("*/goldens.json"))
    if not folders:
        raise SystemExit(f"no models in {harness.TINY}")
    for folder in folders:
        goldens = json.loads((folder / "goldens.json").read_text())["results"]
        for model in [folder, *sorted(harness.TINY.glob(f"{folder.name}.F*.gguf"))]:
            name = "test_" + model.name.replace("-", "_").replace(".", "_")
            setattr(TinyModels, name,
                    lambda self, m=model, g=goldens: self.check_all_ways(m, g))


add_tiny_tests()
if __name__ == "__main__":
    harness.main()
