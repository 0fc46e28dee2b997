#!/usr/bin/env python3
"""Ratios of the CPU kernels to what they are measured against; runs kernel_bench.

    kernels.py build/release/tests/kernel_bench [--rounds 5] [--only 'decode/|pages/']

Every round runs all of them in turn, by the clock of the thread; five rounds take 12 minutes. Prints
"a / b / c", minimum, median and maximum of the ratios of a round.
"""
import argparse
import json
import os
import re
import subprocess

import spread

SHAPES = ("896x4864", "4864x896", "896x896")
ROWS = (32, 64, 128, 256)
INT8_ROWS = (1, 4, 16, 64)
NOT_RUN = "not run"
TYPES = ("Q4_0", "Q5_0", "Q8_0", "G4")


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", help="kernel_bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each, in each round")
    parser.add_argument("--only", default="", help="benchmarks whose names have this expression in them")
    options = parser.parse_args()
    options.names = [name for name in dict.fromkeys(wanted()) if re.search(options.only, name)]
    if not options.names:
        parser.error(f"no benchmark has {options.only} in its name")
    return options


def wanted():
    names = [f"{name}/{shape}/{rows}" for shape in SHAPES for rows in ROWS
             for name in ("F32", "onednn", "Q4_0", "Q5_0", "G4")]
    names += [f"int8/{name}/{shape}/{rows}" for shape in SHAPES for rows in INT8_ROWS for name in TYPES]
    names += [f"{name}/{shape}/{rows}" for shape in SHAPES for rows in INT8_ROWS for name in TYPES]
    names += [f"{name}/{shape}/1" for shape in SHAPES for name in ("F32", *TYPES)]
    names += [f"{what}/{form}" for what in ("decode", "pages") for form in ("f16", "q8", "q4")]
    return ["read", *names]


def one_round(options):
    """{name: benchmark}, by what it is called."""
    names = "|".join(f"^{name}$" for name in options.names)
    done = subprocess.run(
        [options.bench, f"--benchmark_filter={names}", "--benchmark_format=json",
         f"--benchmark_min_time={options.seconds}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    return {each["name"]: each for each in json.loads(done.stdout)["benchmarks"]}


def ratio(rounds, above, below, counter):
    values = [r[above][counter] / r[below][counter] for r in rounds
              if above in r and below in r]
    return spread.text(values) if values else NOT_RUN


def show(title, names, rows):
    """A table of the rows of which anything was run."""
    rows = [row for row in rows if any(" / " in str(value) for value in row)]
    if rows:
        print(f"\n{title}\n\n{spread.table(names, rows)}")


def main():
    options = parse()
    rounds = [one_round(options) for _ in range(options.rounds)]
    rows = []
    for shape in SHAPES:
        for m in ROWS:
            own = f"F32/{shape}/{m}"
            rows.append([shape, m, ratio(rounds, own, f"onednn/{shape}/{m}", "GFLOP/s"),
                         *(ratio(rounds, f"{form}/{shape}/{m}", own, "GFLOP/s")
                           for form in ("Q4_0", "Q5_0", "G4"))])
    show("GFLOP/s of float32 over oneDNN's, and of low-bit weights over float32's",
         ["weights", "rows", "F32 / oneDNN", "Q4_0 / F32", "Q5_0 / F32", "G4 / F32"], rows)
    rows = [[shape, m, *(ratio(rounds, f"int8/{form}/{shape}/{m}", f"{form}/{shape}/{m}", "GFLOP/s")
                         for form in TYPES)]
            for shape in SHAPES for m in INT8_ROWS]
    show("The same products in integers over those in float32, rows quantised before",
         ["weights", "rows", *TYPES], rows)
    rows = [[shape, form, ratio(rounds, f"{form}/{shape}/1", "read", "GB/s")]
            for shape in SHAPES for form in ("F32", *TYPES)]
    show("One row: bytes of weights per second over a plain read's",
         ["weights", "format", "of a plain read"], rows)
    rows = [[form, ratio(rounds, f"pages/{form}", f"decode/{form}", "GB/s")]
            for form in ("f16", "q8", "q4")]
    show("Decode attention, 16 sequences of 4,096 tokens: time over a plain read of the pages",
         ["KV cache", "attention / read"], rows)
    rates = {name: [r[name] for r in rounds] for name in rounds[0]}
    print("\n" + spread.table(["benchmark", "GFLOP/s", "GB/s"], [
        [name, spread.text([v["GFLOP/s"] for v in values], 1),
         spread.text([v["GB/s"] for v in values], 1)] for name, values in rates.items()]))


main()
