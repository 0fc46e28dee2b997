#!/usr/bin/env python3
"""How long a start takes, and what ranks that wait cost.

    waiting.py --program build/release/headrace --model SmolLM2-135M-Instruct.Q4_1.gguf [--rounds 5]

Prints "a / b / c", minimum, median and maximum over the rounds, of
- seconds from the start of the program to its end with one token generated, model in the page cache;
- percent of a core that a rank takes while it waits: for the stage before it (nearly all layers are
  the first rank's), and for input that does not come. From the run's report: CPU time beyond what
  was computed, over the time that was not computed.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time

import spread


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="headrace")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=float, default=5, help="seconds without input")
    return parser.parse_args()


def run(command, *arguments):
    subprocess.run([*map(str, command), *map(str, arguments)], check=True, capture_output=True,
                   timeout=300)


def first_token(options):
    begin = time.monotonic()
    run([options.program], "generate", "--model", options.model, "--prompt",
        "The capital of France is", "--max-tokens", 1, "--device", "cpu")
    return time.monotonic() - begin


def waiting_share(stage):
    """Percent of a core; a stage of one thread."""
    computed = stage["seconds"]["compute"]
    return 100 * max(0, stage["cpu_s"] - computed) / (stage["wall_s"] - computed)


def two_ranks(options, folder, source, *arguments):
    report = folder / "report.json"
    run(["mpirun", "-np", 2, "--bind-to", "none", options.program], "generate", "--model",
        options.model, "--input", source, "--output", folder / f"{time.monotonic_ns()}.jsonl",
        "--threads", 1, "--device", "cpu", "--report", report, *arguments)
    return json.loads(report.read_text())["stages"]


def layers(options):
    text = subprocess.run([options.program, "inspect", options.model], check=True, text=True,
                          capture_output=True).stdout
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("layers")))


def behind_a_stage(options, folder, count):
    source = folder / "in.jsonl"
    lines = [{"prompt": [i + 5, 7, 9], "max_tokens": 32, "ignore_eos": True} for i in range(8)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stages = two_ranks(options, folder, source, "--split", f"{count - 1},1", "--max-batch", 2)
    return waiting_share(stages[1])


def without_input(options, folder):
    pipe = folder / f"{time.monotonic_ns()}.fifo"
    os.mkfifo(pipe)

    def hold():
        with open(pipe, "w", encoding="utf-8"):
            time.sleep(options.idle)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    stages = two_ranks(options, folder, pipe)
    holder.join()
    return [waiting_share(stage) for stage in stages]


def main():
    options = parse()
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    count = layers(options)
    first_token(options)  # the model comes into the page cache
    starts, behind, idle = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for _ in range(options.rounds):
            starts.append(first_token(options))
            behind.append(behind_a_stage(options, folder, count))
            idle.append(without_input(options, folder))
    print(spread.table(["", "minimum / median / maximum"], [
        ["start to the end of a run of one token, s", spread.text(starts)],
        ["rank 1 behind a long stage, % of a core while it waits", spread.text(behind)],
        ["rank 0 without input, %", spread.text([each[0] for each in idle])],
        ["rank 1 without input, %", spread.text([each[1] for each in idle])]]))


if __name__ == "__main__":
    main()
