#!/usr/bin/env python3
"""What q8, q4 and --math int8 cost in quality: perplexity and greedy agreement, as a table.

    quality.py --program build/release/headrace [--json FILE] MODEL...

MODEL is a model in F32, F16 or BF16 (tests/make_hf_directory.py makes one of a GGUF file); a low-bit
model works with --kv-only or --math-only. For every format of weights and of the KV cache, and
arithmetic of linear layers, it prints

  perplexity   of quality.txt in windows of 512 tokens (headrace perplexity), and its ratio to the
               first line's
  agreement    of the greedy continuations of the prompts below with those of the first line: the
               share of equal tokens, place by place, over all prompts
  same         prompts whose whole continuation is equal
  first        median place of the first different token, from 0; prompts that are equal count as
               --tokens

The first line is native weights with an f16 KV cache and f32 arithmetic. int8 does nothing where
native weights are not quantised; --math-only compares f32 and int8 alone, as for low-bit models.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

TEXT = pathlib.Path(__file__).with_name("quality.txt")
KV_ROWS = [("native", "f16", "f32"), ("native", "f32", "f32"), ("native", "q8", "f32"),
           ("native", "q4", "f32")]
WEIGHT_ROWS = [("q8", "f16", "f32"), ("q8", "f16", "int8"), ("q4", "f16", "f32"), ("q4", "f16", "int8"),
               ("q8", "q8", "f32"), ("q4", "q4", "f32")]
MATH_ROWS = [("native", "f16", "f32"), ("native", "f16", "int8")]

PROMPTS = [
    "The capital of France is",
    "To make a good cup of tea, first",
    "Once upon a time, in a village by the sea, there lived",
    "The three most important rules for writing readable code are:\n1.",
    "Water boils at a lower temperature on a mountain because",
    "Dear neighbour,\n\nI am writing to you about the tree",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "// Returns the index of the first element that is not less than `value`.\nint lower_bound(",
    "import csv\n\ndef column_sums(path):\n    \"\"\"Sum of each numeric column of a CSV file.\"\"\"\n",
    "SELECT name, salary FROM employees WHERE",
    "#!/bin/sh\n# Deletes log files that are older than a week.\n",
    "Q: What is the difference between a stack and a queue?\nA:",
    "A list of ten animals that live in the forest:\n",
    "The train left the station at nine. By noon it had",
    "Explain in one paragraph why the sky is blue.\n\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
]


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=3000)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def perplexity(program, model, way):
    text = run([program, "perplexity", "--model", model, "--text", TEXT, *way])
    return float(text.split()[1])


def continuations(program, model, way, tokens):
    """Token ids by prompt."""
    with tempfile.TemporaryDirectory() as folder:
        batch, output = pathlib.Path(folder, "in.jsonl"), pathlib.Path(folder, "out.jsonl")
        batch.write_text("".join(
            json.dumps({"custom_id": str(i), "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}) + "\n"
            for i, prompt in enumerate(PROMPTS)))
        run([program, "generate", "--model", model, "--input", batch, "--output", output, "--token-ids",
             "--device", "cpu", *way, "--quiet"])
        records = map(json.loads, output.read_text().splitlines())
        return {r["custom_id"]: r["response"]["body"]["choices"][0]["token_ids"] for r in records}


def compare(reference, other, tokens):
    """(share of equal tokens, prompts that are equal, median place of the first difference)."""
    equal = whole = 0
    first = []
    for name, ids in reference.items():
        same = [a == b for a, b in zip(ids, other[name], strict=True)]
        equal += sum(same)
        whole += all(same)
        first.append(same.index(False) if not all(same) else tokens)
    return equal / (len(reference) * tokens), whole, statistics.median(first)


def measure(program, model, rows, tokens):
    results, base = [], None
    for weights, kv, math in rows:
        way = ["--weights", weights, "--kv", kv, "--math", math]
        ids = continuations(program, model, way, tokens)
        value = perplexity(program, model, way)
        base = base or (ids, value)
        share, whole, first = compare(base[0], ids, tokens)
        results.append({"model": pathlib.Path(model).name, "weights": weights, "kv": kv, "math": math, "perplexity": value,
                        "ratio": value / base[1], "agreement": share, "same": whole, "first": first})
        print(f"| {weights} | {kv} | {math} | {value:.3f} | {value / base[1]:.4f} | {share:.1%} "
              f"| {whole} of {len(PROMPTS)} | {first:g} |", flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--program", default="build/release/headrace")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate per prompt")
    parser.add_argument("--kv-only", action="store_true", help="leave the weights as they are")
    parser.add_argument("--math-only", action="store_true", help="f32 and int8 alone")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file, too")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    arguments = parser.parse_args()
    results = []
    for model in arguments.models:
        print(f"\n{pathlib.Path(model).name}: {len(PROMPTS)} prompts, {arguments.tokens} tokens each\n\n"
              "| weights | kv | math | perplexity | ratio | agreement | same | first |\n"
              "|---|---|---|---|---|---|---|---|")
        rows = MATH_ROWS if arguments.math_only else KV_ROWS + ([] if arguments.kv_only else WEIGHT_ROWS)
        results += measure(arguments.program, model, rows, arguments.tokens)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
