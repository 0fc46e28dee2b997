#!/usr/bin/env python3
"""Published generations with published verdicts, to hold the scoring against; see golden.md.

  golden.py prepare --published RESULTS.json --output FOLDER
  golden.py compare --published RESULTS.json --inside verdicts.jsonl --outside RESULTS.json

RESULTS.json is what evalplus.evaluate writes. prepare takes the programs out of it, once for
scoring.score (generations.jsonl) and once for evalplus.evaluate (samples.jsonl). compare lists
every task on which the verdicts differ; exit code 1 where those inside the sandbox are not those
of EvalPlus outside it.
"""
import argparse
import json
import pathlib
import sys


def read_results(path):
    """{task: (base, plus)} of a file of evalplus.evaluate with one sample a task."""
    return {task: (sample["base_status"], sample["plus_status"])
            for task, (sample,) in json.loads(path.read_text())["eval"].items()}


def read_verdicts(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["task_id"]: (record["base"], record["plus"]) for record in records}


def prepare(arguments):
    results = json.loads(arguments.published.read_text())["eval"]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with open(arguments.output / "generations.jsonl", "w") as ours, \
            open(arguments.output / "samples.jsonl", "w") as theirs:
        for task in sorted(results, key=lambda task: int(task.split("/")[1])):
            solution = results[task][0]["solution"]
            ours.write(json.dumps({"task_id": task, "sample": 0, "text": solution}) + "\n")
            theirs.write(json.dumps({"task_id": task, "solution": solution}) + "\n")
    return 0


def compare(arguments):
    columns = {"inside": read_verdicts(arguments.inside),
               "outside": read_results(arguments.outside),
               "published": read_results(arguments.published)}
    for name, verdicts in columns.items():
        base = sum(base == "pass" for base, _ in verdicts.values())
        plus = sum(base == plus == "pass" for base, plus in verdicts.values())
        print(f"{name}: {base} / {plus} of {len(verdicts)}")
    inside, outside, published = columns.values()
    for task in sorted(inside, key=lambda task: int(task.split("/")[1])):
        if not inside[task] == outside.get(task) == published.get(task):
            row = [f"{name} {'/'.join(verdicts.get(task, ('not', 'there')))}"
                   for name, verdicts in columns.items()]
            print(f"  {task}: {', '.join(row)}")
    same = inside == outside
    print(f"inside and outside are {'the same for every task' if same else 'NOT the same'}")
    return 0 if same else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "compare"])
    for name in ("published", "output", "inside", "outside"):
        parser.add_argument(f"--{name}", type=pathlib.Path, metavar="PATH")
    arguments = parser.parse_args()
    step, needed = {"prepare": (prepare, ["published", "output"]),
                    "compare": (compare, ["published", "inside", "outside"])}[arguments.step]
    missing = [name for name in needed if getattr(arguments, name) is None]
    if missing:
        parser.error(f"{arguments.step} needs --" + " and --".join(missing))
    return step(arguments)


if __name__ == "__main__":
    sys.exit(main())
