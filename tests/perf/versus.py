#!/usr/bin/env python3
"""Tokens per second beside the programs that a user would take instead.

    versus.py --program build/release/headrace --model MODEL.gguf [--batch 1,4,16,64] [--rounds 5]

Every round runs headrace and each peer in turn, at every batch size: random prompts of --prompt
tokens, --generate tokens for each, and as many threads for all. The peers are llama.cpp (package
llama-cpp-python, flash attention, weights repacked) and OpenVINO GenAI (package openvino-genai,
GGUF files of Q4_0); one that --peer-python does not have is named and left out. --q4 FILE: the
model as Q4_0, which llama.cpp makes of it where FILE is not there, is measured, too. --math
f32,int8: headrace with each of these, in turn, and the ratios of each.

Prints "a / b / c", minimum, median and maximum over the rounds; ratios are taken within a round.
"""
import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import spread

HERE = pathlib.Path(__file__).parent
PEERS = {"llama.cpp": ("llama_cpp", "peer_llama.py"),
         "OpenVINO": ("openvino_genai", "peer_openvino.py")}
RATES = ("prefill", "decode", "generated")
OWN = "headrace"


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="headrace")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--q4", help="GGUF file of the same model, all Q4_0")
    parser.add_argument("--batch", default="1,4,16,64")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--math", default="f32", help="of headrace: f32, int8, or f32,int8")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer-python", default=sys.executable, help="Python with the packages")
    parser.add_argument("--json", help="file for all that was measured")
    return parser.parse_args()


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return done.stdout


def rates(batch, prompt, generate, prefill_s, decode_s):
    """Of a peer, whose first tokens come out of the prefill."""
    return {"prefill": batch * prompt / prefill_s,
            "decode": batch * (generate - 1) / decode_s,
            "generated": batch * generate / (prefill_s + decode_s)}


def headrace(math):
    def measure(options, model, batch):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "bench.json"
            run(options.program, "bench", "--model", model, "--batch", batch, "--prompt-tokens",
                options.prompt, "--generate-tokens", options.generate, "--threads", options.threads,
                "--device", "cpu", "--math", math, "--json", out)
            measured = json.loads(out.read_text())["batches"][0]
        return {rate: measured[f"{rate}_tokens_per_s"]["median"] for rate in RATES}
    return measure


def peer(script):
    def measure(options, model, batch):
        result = json.loads(run(options.peer_python, HERE / script, model, batch, options.prompt,
                                options.generate - 1, options.threads))
        return rates(batch, options.prompt, options.generate, result["prefill_s"],
                     sum(result["step_s"]))
    return measure


def programs(options):
    """What can be run here, headrace first."""
    found = {f"{OWN} {math}": headrace(math) for math in options.math.split(",")}
    for name, (module, script) in PEERS.items():
        try:
            run(options.peer_python, "-c", f"import {module}")
            found[name] = peer(script)
        except (OSError, RuntimeError) as error:
            print(f"{name} is left out: {error}")
    return found


def models(options):
    """By what the table calls them."""
    named = {pathlib.Path(options.model).name: options.model}
    if options.q4:
        if not pathlib.Path(options.q4).exists():
            try:
                run(options.peer_python, HERE / "peer_llama.py", options.model, "--requantise",
                    options.q4)
            except (OSError, RuntimeError) as error:
                sys.exit(f"--q4 {options.q4} is not there and cannot be made: {error}")
        named[pathlib.Path(options.q4).name] = options.q4
    return named


def measure(options):
    """{model: {batch: {program: [rates of each round]}}}; a peer that fails is left out."""
    found, named = programs(options), models(options)
    batches = [int(word) for word in options.batch.split(",")]
    cells = list(itertools.product(named, batches, found))
    measured = {name: {batch: {} for batch in batches} for name in named}
    for number in range(options.rounds):
        for cell in list(cells):
            name, batch, program = cell
            print(f"round {number + 1} of {options.rounds}: {name}, batch {batch}, {program}",
                  file=sys.stderr, flush=True)
            rounds = measured[name][batch].setdefault(program, [])
            try:
                rounds.append(found[program](options, named[name], batch))
            except RuntimeError as error:
                if program.startswith(OWN):
                    raise
                print(f"{program} is left out of {name}, batch {batch}: {error}")
                cells.remove(cell)
                del measured[name][batch][program]
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(measured, indent=1))
    return measured


def report(measured):
    for name, batches in measured.items():
        rows = []
        own = [program for program in next(iter(batches.values())) if program.startswith(OWN)]
        for batch, cell in batches.items():
            generated = {program: [r["generated"] for r in rounds] for program, rounds in cell.items()}
            for program, rounds in cell.items():
                values = (spread.text([r[rate] for r in rounds], 1) for rate in RATES)
                ratios = ("" if program == ours else
                          spread.text(spread.ratios(generated[ours], generated[program]))
                          for ours in own)
                rows.append([batch, program, *values, *ratios])
        print(f"\n{name}, tokens per second\n")
        print(spread.table(["batch", "program", *RATES,
                            *(f"{ours} over it, generated" for ours in own)], rows))


def main():
    options = parse()
    report(measure(options))


main()
