"""Every figure that the report states, with where it comes from.

    python3 -m study.claims RESULTS [--claim ID | --table]

computes them again from the measured files of a results directory and prints them, or the short table
that READMEs show. claims.json
holds what was committed; study.verify compares the two.
"""
import argparse
import dataclasses
import json
import pathlib
import sys

from study import data, metrics, report

PUBLISHED = pathlib.Path(__file__).resolve().parent.parent / "published.json"
VERDICTS = "generations.jsonl, verdicts.jsonl"


@dataclasses.dataclass(frozen=True)
class Claim:
    """`text` is a whole sentence; low and high are its interval where it has one, of the kind that
    `interval` names."""
    id: str
    text: str
    value: float
    unit: str
    file: str
    low: float = None
    high: float = None
    interval: str = None

    def record(self):
        return {**dataclasses.asdict(self),
                "command": f"python3 -m study.claims RESULTS --claim {self.id}"}


def where(run):
    stages = "one stage" if run["ranks"] == 1 else f"{run['ranks']} stages"
    threads = "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"
    return f"batch {run['batch']}, {stages} of {threads}"


def speed_claims(files, results):
    for name, speed in results["speed"].items():
        run, file = files.runs[name]["run"], f"runs/{name}.json"
        place = f"{name} ({where(run)}, {speed['requests']} requests)"
        pieces = f", in {speed['pieces']} pieces" if speed["pieces"] > 1 else ""
        yield Claim(f"speed.{name}", f"{place} generated {speed['generated_per_s']:.1f} tokens/s over "
                    f"the whole run{pieces}.", speed["generated_per_s"], "tokens/s", file)
        yield Claim(f"cpu.{name}", f"{place} generated {speed['generated_per_cpu_s']:.1f} tokens for "
                    "each second of processor time.", speed["generated_per_cpu_s"], "tokens/CPU s",
                    file)
        yield Claim(f"others.{name}", f"During {name}, other programs took "
                    f"{100 * speed['others_cpu_share']:.0f} % of the machine's processor time.",
                    speed["others_cpu_share"], "share", file)
        for key, seconds in (speed["latency_s"] or {}).items():
            if key != "requests":
                yield Claim(f"latency.{name}.{key}", f"In {place}, {key[1:]} % of requests were in "
                            f"flight for at most {seconds:.1f} s.", seconds, "s", file)


def fixed_claims(results):
    words = {"prefill": "prefilled", "decode": "decoded", "generated": "generated (prefill included)"}
    for stages, batches in results["fixed_length"].items():
        for batch, rates in batches.items():
            for key, word in words.items():
                rate = rates[f"{key}_tokens_per_s"]
                if rate is None:
                    continue
                yield Claim(f"fixed.{stages}.batch{batch}.{key}", f"The fixed-length run at batch "
                            f"{batch} with {stages[6:]} stage(s) {word} {rate['median']:.1f} tokens/s "
                            f"(median; {rate['min']:.1f} to {rate['max']:.1f}).", rate["median"],
                            "tokens/s", f"bench/{stages}.json", rate["min"], rate["max"],
                            "minimum and maximum of the repetitions")


def percent(share):
    return f"{100 * share:.1f}"


def share_claim(identity, place, tests, share, file=VERDICTS):
    return Claim(identity, f"{place} passed the {tests} tests of {share['passed']} of "
                 f"{share['tasks']} tasks: pass@1 {percent(share['value'])} % "
                 f"({percent(share['low'])} to {percent(share['high'])}).", share["value"], "share",
                 file, share["low"], share["high"], "95 %, Wilson score, over tasks")


def accuracy_claims(results):
    for name, accuracy in results["accuracy"].items():
        for tests in ("base", "plus"):
            yield share_claim(f"pass1.{name}.{tests}", name, tests, accuracy[tests])
        yield Claim(f"cut.{name}", f"{accuracy['cut_at_limit']} outputs of {name} were cut at the "
                    "token limit.", accuracy["cut_at_limit"], "outputs", "generations.jsonl")
    for name, accuracy in results["accuracy_without_sanitiser"].items():
        for tests in ("base", "plus"):
            yield share_claim(f"pass1-as-is.{name}.{tests}", f"{name}, without EvalPlus's sanitiser,",
                              tests, accuracy[tests], "generations.jsonl, as-is/verdicts.jsonl")
    for name, found in results["pass_at_k"].items():
        for k, tests in found["k"].items():
            for key, value in tests.items():
                yield Claim(f"pass{k}.{name}.{key}", f"{name}: pass@{k} of the {key} tests is "
                            f"{percent(value['value'])} % ({percent(value['low'])} to "
                            f"{percent(value['high'])}), {found['samples']} samples of each of "
                            f"{found['tasks']} tasks.", value["value"], "share", VERDICTS,
                            value["low"], value["high"], "95 %, bootstrap over tasks")


def difference_claims(results):
    for entry in results["differences"]:
        for key, what in (("token_ids", "token ids"), ("texts", "texts"), ("base", "base verdicts"),
                          ("plus", "plus verdicts")):
            yield Claim(f"differ.{entry['a']}.{entry['b']}.{key}", f"Of {entry['requests']} requests, "
                        f"{entry[key]} have other {what} in {entry['b']} than in {entry['a']}.",
                        entry[key], "requests", VERDICTS)
    pairs = results["differences"]
    if pairs:
        worst = max(entry["token_ids"] for entry in pairs)
        yield Claim("differ.most", f"Over all {len(pairs)} pairs of runs with requests in common, at "
                    f"most {worst} requests have other token ids.", worst, "requests",
                    "generations.jsonl")
    for entry in results["prompt_difference"]:
        for tests in ("base", "plus"):
            for which, other in (("a", "b"), ("b", "a")):
                count = entry[f"{tests}_only_{which}"]
                yield Claim(f"prompt.{tests}.only-{entry[which]}", f"Of {entry['tasks']} tasks, {count} "
                            f"pass the {tests} tests only in {entry[which]}, not in {entry[other]}.",
                            count, "tasks", VERDICTS)


def peer_claims(results):
    for name, peer in results["peers"].items():
        file = f"endpoint/{name}.jsonl"
        place = f"{peer['label']} at concurrency {peer['concurrency']} ({peer['done']} tasks)"
        yield Claim(f"failed.{name}", f"{place}: {peer['failed']} requests failed, "
                    f"{peer['failed_attempts']} attempts had to be repeated.", peer["failed"],
                    "requests", file)
        if not peer["done"]:
            continue
        yield Claim(f"speed.{name}", f"{place} generated {peer['generated_per_s']:.1f} tokens/s.",
                    peer["generated_per_s"], "tokens/s", file)
        for key, seconds in peer["latency_s"].items():
            yield Claim(f"latency.{name}.{key}", f"{place}: {key[1:]} % of requests took at most "
                        f"{seconds:.1f} s.", seconds, "s", file)
        for tests in ("base", "plus"):
            yield share_claim(f"pass1.{name}.{tests}", place, tests, peer["accuracy"][tests])
        if "headrace_over_it" in peer:
            yield Claim(f"ratio.{name}", f"headrace at batch {peer['concurrency']} on the same tasks "
                        f"({peer['headrace_run']}) generated {peer['headrace_over_it']:.2f} times the "
                        f"tokens/s of {place}.", peer["headrace_over_it"], "ratio",
                        f"{file}, runs/{peer['headrace_run']}.json")
            other = peer["against_headrace"]
            yield Claim(f"against.{name}", f"{place}: {other['texts']} of {other['requests']} texts "
                        "are other than headrace's.", other["texts"], "requests",
                        "generations.jsonl")
    for entry in results["peer_differences"]:
        yield Claim(f"differ.{entry['a']}.{entry['b']}.texts", f"Of {entry['requests']} requests, "
                    f"{entry['texts']} have other texts in {entry['b']} than in {entry['a']}.",
                    entry["texts"], "requests", "generations.jsonl")


def published_claims():
    for index, row in enumerate(json.loads(PUBLISHED.read_text(encoding="utf-8"))):
        for tests in ("base", "plus"):
            yield Claim(f"published.{index}.{tests}", f"{row['name']}: {row[tests]} % ({tests} tests), "
                        f"{row['source']}; {'' if row['run'] else 'not run; '}{row['note']}.",
                        row[tests] / 100, "share", "published.json")


def claims_of(files, results):
    """{id: Claim}"""
    found = [*speed_claims(files, results), *fixed_claims(results), *accuracy_claims(results),
             *difference_claims(results), *peer_claims(results), *published_claims()]
    return {claim.id: claim for claim in found}


def text_of(claims):
    return json.dumps([claim.record() for claim in claims.values()], indent=1,
                      ensure_ascii=False) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--claim", metavar="ID", help="only this one")
    parser.add_argument("--table", action="store_true", help="the short table as Markdown")
    arguments = parser.parse_args()
    try:
        files = metrics.read(arguments.results)
    except (OSError, data.DataError, ValueError, KeyError) as error:
        print(f"claims: {error}", file=sys.stderr)
        return 65
    claims = claims_of(files, metrics.results_of(files))
    if arguments.claim and arguments.claim not in claims:
        print(f"claims: there is no claim {arguments.claim}", file=sys.stderr)
        return 2
    if arguments.table:
        print(report.short_table(files, report.Figures(claims)))
        return 0
    for claim in [claims[arguments.claim]] if arguments.claim else claims.values():
        print(f"{claim.id}: {claim.text}  [{claim.value!r} {claim.unit}; {claim.file}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
