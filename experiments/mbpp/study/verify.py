"""Computes every figure of committed results again, from their measured files.

    python3 -m study.verify RESULTS

Exit code 0: results.json, claims.json, report.md and every statement in report.html are what those
files give. Needs nothing but Python.
"""
import argparse
import html
import json
import math
import pathlib
import re
import sys

from study import claims, data, metrics, report


def different(stored, computed, place=""):
    """Where two JSON values differ; numbers may differ in their last digits."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        keys = sorted(stored.keys() | computed.keys())
        return [line for key in keys for line in different(stored.get(key), computed.get(key),
                                                           f"{place}/{key}")]
    if isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        return [line for index, (a, b) in enumerate(zip(stored, computed))
                for line in different(a, b, f"{place}/{index}")]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool)
                  for value in (stored, computed))
    same = math.isclose(stored, computed, rel_tol=1e-9) if numbers else stored == computed
    return [] if same else [f"{place}: {stored!r} is stored, {computed!r} is computed"]


def as_json(value):
    return json.loads(json.dumps(value))


def verify(results):
    """What is wrong, as lines of text; the number of claims."""
    files = metrics.read(results)
    computed = metrics.results_of(files)
    found = claims.claims_of(files, computed)
    stored = metrics.load_json(results / "claims.json")
    wrong = [f"results.json{line}" for line in different(
        metrics.load_json(results / "results.json"), as_json(computed))]
    wrong += [f"claims.json{line}" for line in different(
        {claim["id"]: claim for claim in stored},
        {claim.id: as_json(claim.record()) for claim in found.values()})]
    wrong += wrong_tokens(files, computed)
    wrong += wrong_reports(results, files, computed, found)
    return wrong, len(found)


def wrong_tokens(files, computed):
    """Of a run in one piece, headrace's own count must be that of the token ids."""
    return [f"runs/{name}.json: {run['pieces'][0]['tokens']['generated']} generated tokens, "
            f"{computed['speed'][name]['generated']} token ids in generations.jsonl"
            for name, run in files.runs.items() if len(run["pieces"]) == 1
            and not computed["speed"][name]["untimed_requests"]
            and run["pieces"][0]["tokens"]["generated"] != computed["speed"][name]["generated"]]


def wrong_reports(results, files, computed, found):
    text = (results / "report.md").read_text(encoding="utf-8")
    plots = re.findall(r"^!\[.*\]\((\w+)\.svg\)$", text, re.MULTILINE)
    again = report.markdown(files, computed, found, metrics.load_json(results / "scoring.json"),
                            metrics.load_json(claims.PUBLISHED), plots)
    wrong = [f"report.md line {number}: {a!r} stands there, {b!r} is computed"
             for number, (a, b) in enumerate(zip(text.split("\n"), again.split("\n")), start=1)
             if a != b]
    if text.count("\n") != again.count("\n"):
        wrong.append("report.md has another number of lines than computed")
    page = (results / "report.html").read_text(encoding="utf-8")
    return wrong + [f"report.html lacks the statement {claim.id}: {claim.text}"
                    for claim in found.values() if html.escape(claim.text, quote=False) not in page]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        wrong, count = verify(arguments.results)
    except (OSError, data.DataError, ValueError, KeyError, TypeError) as error:
        print(f"verify: {arguments.results}: {type(error).__name__}: {error}", file=sys.stderr)
        return 65
    for line in wrong:
        print(f"verify: {line}")
    print(f"verify: {count} claims computed again, {len(wrong)} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
