#!/usr/bin/env python3
"""Benchmarks of offloading; Linux with control groups of version 1, as root.

    offload.py --program build/release/headrace --work DIR [--figure 1 ...] [--rounds 5]

  1  a model larger than memory, against llama.cpp (package llama-cpp-python) on the same file
  2  the same for headrace alone, over the larger of reading and computing alone
  3  two ranks, each with half of the layers and a disk, against one
  4  a KV cache larger than its memory, against all of it in memory
  5  4-bit weights against 8-bit ones
  6  two ranks on one disk, against a disk of half its rate for each

Figures 1 and 2 are measured together. Every round runs both sides in turn; "a / b / c" is minimum,
median and maximum over the rounds, and ratios are taken within a round. --work is a folder on the
disk to be measured; models and offload files (8 GB) stay there for the next time.
"""
import argparse
import json
import os
import pathlib
import signal
import sys

import figures
import limits
from lab import Lab


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="headrace")
    parser.add_argument("--work", required=True, help="folder for models and offload files")
    parser.add_argument("--figure", type=int, action="append", choices=range(1, 7), help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one small round, to see that all works")
    parser.add_argument("--batches", default="1,8,32,128", help="of figures 1 and 2")
    parser.add_argument("--peer-batch", type=int, default=32, help="largest of the peer")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has llama_cpp")
    parser.add_argument("--prompt", type=int, default=64, help="tokens, figures 1 and 2")
    parser.add_argument("--generate", type=int, default=32, help="tokens, figures 1 and 2")
    parser.add_argument("--peer-steps", type=int, default=4, help="decode steps of the peer")
    parser.add_argument("--memory", type=int, default=900, help="MiB of the control group")
    parser.add_argument("--margin", type=int, default=8,
                        help="MiB of it for code and libraries; headrace gets the rest as its budget")
    parser.add_argument("--kv", default="f16", help="KV cache of headrace, figures 1 and 2")
    parser.add_argument("--rate", type=float, default=500, help="MB/s of the disk")
    parser.add_argument("--pair-rate", type=float, default=250,
                        help="MB/s of each disk of figure 3, whose two are one disk in truth")
    parser.add_argument("--pair-memory", type=int, default=500,
                        help="MiB of each of two ranks, figure 3: half, and what a process needs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peer")
    parser.add_argument("--kv-model", default=None, help="model of figure 4 (default: "
                        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf in the folder HEADRACE_MODELS)")
    parser.add_argument("--kv-sequences", type=int, default=128, help="figure 4")
    parser.add_argument("--kv-tokens", type=int, default=1024, help="of each, figure 4")
    parser.add_argument("--kv-memory", type=int, default=400, help="MiB, figure 4")
    parser.add_argument("--kv-rate", type=float, default=700, help="MB/s of the disk, figure 4")
    parser.add_argument("--lock", help="file to lock during each round")
    parser.add_argument("--json", help="file for all that was measured")
    options = parser.parse_args()
    options.batches = [int(word) for word in options.batches.split(",")]
    if options.quick:
        options.rounds, options.batches, options.generate, options.peer_steps = 1, [1, 8], 4, 2
        options.kv_sequences, options.kv_tokens, options.kv_memory = 8, 512, 16
    if not options.kv_model:
        folder = os.environ.get("HEADRACE_MODELS", "")
        options.kv_model = str(pathlib.Path(folder) / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    return options


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    options = parse()
    signal.signal(signal.SIGTERM, interrupt)
    pathlib.Path(options.work).mkdir(parents=True, exist_ok=True)
    try:
        limits.check(options.work)
    except limits.CannotLimit as reason:
        raise SystemExit(f"nothing is measured: {reason}") from None
    lab = Lab(options)
    wanted = {1 if figure == 2 else figure for figure in options.figure or range(1, 7)}
    measured = {}
    for number in sorted(wanted):
        try:
            measured[number] = figures.ALL[number](lab)
        except figures.LeftOut as reason:
            print(f"\nfigure {number} is left out: {reason}")
        sys.stdout.flush()
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(measured, indent=1))


try:
    main()
except KeyboardInterrupt:
    raise SystemExit("interrupted; the control groups are gone") from None
