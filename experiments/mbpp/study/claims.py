"""Every figure that the report states, with where it comes from.

    python3 -m study.claims RESULTS [--claim ID | --table]

run in experiments/mbpp, computes them again from the measured files of a results directory and
prints them, or the short table that READMEs show. claims.json holds what was committed; study.verify compares the two.
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


def pieces_of(speed):
    if speed["pieces"] == 1 and not speed["untimed_requests"]:
        return ""
    untimed = speed["untimed_requests"]
    killed = f"; {untimed} requests are of killed pieces and have no times" if untimed else ""
    return f" (in {speed['pieces']} pieces{killed})"


def speed_claims(files, results):
    for name, speed in results["speed"].items():
        run, file = files.runs[name]["run"], f"runs/{name}.json"
        place = f"{name} ({where(run)}, {speed['requests']} requests)"
        rate, per_cpu = speed["generated_per_s"], speed["generated_per_cpu_s"]
        yield Claim(f"speed.{name}", f"{place} generated {rate:.1f} tokens/s over the whole run"
                    f"{pieces_of(speed)}.", rate, "tokens/s", file)
        yield Claim(f"cpu.{name}", f"{place} generated {per_cpu:.1f} tokens for each second of "
                    "processor time.", per_cpu, "tokens/CPU s", file)
        shared = speed["shared_share"]
        yield Claim(f"shared.{name}", f"{100 * shared:.0f} % of the prompt tokens of {name} were "
                    "taken over from requests whose prompts begin alike.", shared, "share", file)
        yield others_claim(name, speed["others_cpu_share"], file)
        yield from latency_claims(name, place, speed["latency_s"], file)


def others_claim(name, share, file):
    return Claim(f"others.{name}", f"During {name}, other programs took {100 * share:.0f} % of the "
                 "machine's processor time.", share, "share", file)


def latency_claims(name, place, latency, file):
    for key, seconds in (latency or {}).items():
        yield Claim(f"latency.{name}.{key}", f"{place}: {key[1:]} % of requests were in flight for "
                    f"at most {seconds:.1f} s.", seconds, "s", file)


FIXED_WORDS = {"prefill": "prefilled", "decode": "decoded",
               "generated": "generated (prefill included)"}


def fixed_claims(results):
    for stages, batches in results["fixed_length"].items():
        for batch, rates in batches.items():
            for key, word in FIXED_WORDS.items():
                rate = rates[f"{key}_tokens_per_s"]
                if rate is None:
                    continue
                text = (f"The fixed-length run at batch {batch} with {stages[6:]} stage(s) {word} "
                        f"{rate['median']:.1f} tokens/s (median; {rate['min']:.1f} to "
                        f"{rate['max']:.1f}).")
                yield Claim(f"fixed.{stages}.batch{batch}.{key}", text, rate["median"], "tokens/s",
                            f"bench/{stages}.json", rate["min"], rate["max"],
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
            yield share_claim(f"pass1-as-is.{name}.{tests}",
                              f"{name}, without EvalPlus's sanitiser,", tests, accuracy[tests],
                              "generations.jsonl, as-is/verdicts.jsonl")


def samples_claims(runs, prefix=""):
    for name, found in runs.items():
        for k, by_tests in found["k"].items():
            for tests, value in by_tests.items():
                text = (f"{name}: pass@{k} of the {tests} tests is {percent(value['value'])} % "
                        f"({percent(value['low'])} to {percent(value['high'])}), "
                        f"{found['samples']} samples of each of {found['tasks']} tasks.")
                yield Claim(f"{prefix}pass{k}.{name}.{tests}", text, value["value"], "share",
                            VERDICTS, value["low"], value["high"], "95 %, bootstrap over tasks")


PARTS = {"token_ids": "token ids", "texts": "texts", "base": "base verdicts",
         "plus": "plus verdicts"}


def difference_claims(entries, parts):
    for entry in entries:
        for key in parts:
            text = (f"Of {entry['requests']} requests, {entry[key]} have other {PARTS[key]} in "
                    f"{entry['b']} than in {entry['a']}.")
            yield Claim(f"differ.{entry['a']}.{entry['b']}.{key}", text, entry[key], "requests",
                        VERDICTS if key in ("base", "plus") else "generations.jsonl")


def most_different(pairs):
    pairs = [entry for entry in pairs if not (entry["a"] + entry["b"]).count("peer-")]
    if pairs:
        worst = max(entry["token_ids"] for entry in pairs)
        text = (f"In {len(pairs)} pairs of runs, with other batch sizes or stage counts, "
                + (f"up to {worst} requests have other token ids." if worst else
                   "no request has other token ids."))
        yield Claim("differ.most", text, worst, "requests", "generations.jsonl")


def prompt_claims(results):
    for entry in results["prompt_difference"]:
        for tests in ("base", "plus"):
            for which, other in (("a", "b"), ("b", "a")):
                count = entry[f"{tests}_only_{which}"]
                text = (f"Of {entry['tasks']} tasks, {count} pass the {tests} tests only in "
                        f"{entry[which]}, not in {entry[other]}.")
                yield Claim(f"prompt.{tests}.only-{entry[which]}", text, count, "tasks", VERDICTS)


def peer_claims(results):
    for name, peer in results["peers"].items():
        file = f"endpoint/{name}.jsonl"
        place = f"{peer['label']} at concurrency {peer['concurrency']} ({peer['done']} tasks)"
        yield Claim(f"failed.{name}", f"{place}: {peer['failed']} requests failed, "
                    f"{peer['failed_attempts']} attempts had to be repeated, "
                    f"{peer['waited_s']:.0f} s were waited.", peer["failed"], "requests", file)
        if not peer["done"]:
            continue
        rate = peer["generated_per_s"]
        yield Claim(f"speed.{name}", f"{place} generated {rate:.1f} tokens/s.", rate, "tokens/s",
                    file)
        yield from latency_claims(name, place, peer["latency_s"], file)
        for tests in ("base", "plus"):
            yield share_claim(f"pass1.{name}.{tests}", place, tests, peer["accuracy"][tests])
        if "headrace_over_it" in peer:
            yield from beside_claims(name, place, peer, file)


def beside_claims(name, place, peer, file):
    """headrace beside the peer, on the same tasks."""
    ratio, run, other = peer["headrace_over_it"], peer["headrace_run"], peer["against_headrace"]
    yield Claim(f"ratio.{name}", f"headrace at batch {peer['concurrency']} on the same tasks "
                f"({run}) generated {ratio:.2f} times the tokens/s of {place}.", ratio, "ratio",
                f"{file}, runs/{run}.json")
    yield others_claim(name, peer["others_cpu_share"], f"endpoint/{name}.json")
    yield Claim(f"prompts.{name}", f"{place} counted another number of prompt tokens than headrace "
                f"in {other['prompt_tokens']} of {other['requests']} requests.",
                other["prompt_tokens"], "requests", "generations.jsonl")
    yield Claim(f"against.{name}", f"{place}: {other['texts']} of {other['requests']} texts are "
                "other than headrace's.", other["texts"], "requests", "generations.jsonl")


def published_claims():
    for index, row in enumerate(json.loads(PUBLISHED.read_text(encoding="utf-8"))):
        for tests in ("base", "plus"):
            text = (f"{row['name']}: {row[tests]} % ({tests} tests), {row['source']}; "
                    f"{'' if row['run'] else 'not run; '}{row['note']}.")
            yield Claim(f"published.{index}.{tests}", text, row[tests] / 100, "share",
                        "published.json")


def claims_of(files, results):
    """{id: Claim}"""
    found = [*speed_claims(files, results), *fixed_claims(results), *accuracy_claims(results),
             *samples_claims(results["pass_at_k"]),
             *samples_claims(results["pass_at_k_of_common_tasks"], "common."),
             *difference_claims(results["differences"], PARTS),
             *most_different(results["differences"]), *prompt_claims(results),
             *peer_claims(results), *difference_claims(results["peer_differences"], ["texts"]),
             *published_claims()]
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
