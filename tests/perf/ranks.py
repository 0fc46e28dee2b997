#!/usr/bin/env python3
"""What the cut into ranks costs: tokens per second of N ranks with a thread each, beside one rank with
two threads, in turn.

    ranks.py --program build/release/headrace --model MODEL.gguf [--rounds 5]

The same sequences at once for all; ranks take turns with groups of them, at least one for each rank.
More ranks than cores share them: their rates say what the cut costs, not what more machines give.
Prints "a / b / c", minimum, median and maximum over the rounds; ratios are taken within a round.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import spread

RATES = ("prefill", "decode", "generated")


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="headrace")
    parser.add_argument("--model", required=True)
    parser.add_argument("--ranks", default="2,3,4")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--math", help="as of headrace bench")
    return parser.parse_args()


def rates(options, folder, ranks, threads):
    out = folder / "bench.json"
    start = ["mpirun", "-np", ranks, "--bind-to", "none", "--oversubscribe"] if ranks > 1 else []
    math = ["--math", options.math] if options.math else []
    command = [*start, options.program, "bench", "--model", options.model, "--batch", options.batch,
               "--prompt-tokens", options.prompt, "--generate-tokens", options.generate,
               "--threads", threads, "--device", "cpu", "--json", out, *math]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=1800)
    measured = json.loads(out.read_text())["batches"][0]
    return {rate: measured[f"{rate}_tokens_per_s"]["median"] for rate in RATES}


def main():
    options = parse()
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    all_ranks = [1, *map(int, options.ranks.split(","))]
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.rounds):
            rounds.append({ranks: rates(options, pathlib.Path(name), ranks, 2 if ranks == 1 else 1)
                           for ranks in all_ranks})
    rows = []
    for ranks in all_ranks:
        cells = [spread.text([r[ranks][rate] for r in rounds], 1) for rate in RATES]
        if ranks > 1:
            cells += [spread.text([r[ranks][rate] / r[1][rate] for r in rounds])
                      for rate in ("decode", "generated")]
        rows.append([f"{ranks} x {2 if ranks == 1 else 1}", *cells, *([""] * (5 - len(cells)))])
    print(spread.table(["ranks x threads", *RATES, "decode over one rank's", "generated"], rows))


if __name__ == "__main__":
    main()
