"""results.json from the measured files of a results directory; nothing else goes into it.

    manifest.json                   what was run
    generations.jsonl               outputs (study/collect.py)
    verdicts.jsonl                  of scoring, in the same order
    as-is/verdicts.jsonl            without the sanitiser, of the outputs that scored_as_is names
    runs/NAME.json                  the pieces of each run: times, tokens, when each result came
    bench/stagesN.json              headrace bench
    endpoint/NAME.jsonl             journals of endpoint.py, texts taken out (study/journal.py)
    endpoint/NAME.json              of a server that the study itself ran (study/peer.py)
"""
import dataclasses
import itertools
import json
import pathlib

from study import data, estimates, follow, journal

REFERENCE = "batch1-stages1"
PERCENTILES = (50, 90, 99)


@dataclasses.dataclass(frozen=True)
class Files:
    """What a results directory holds, read."""
    manifest: dict
    generations: list
    verdicts: list
    as_is: list      # verdicts without the sanitiser, or empty
    runs: dict       # name: {"run": fields of Run, "pieces": [...]}
    bench: dict      # "stages1": report of headrace bench
    endpoints: dict  # name: records of the journal
    peer_facts: dict  # name: how the study ran that server; only for servers that it ran


def load_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read(results):
    results = pathlib.Path(results)
    as_is = results / "as-is" / "verdicts.jsonl"
    files = Files(
        manifest=load_json(results / "manifest.json"),
        generations=data.read_json_lines(results / "generations.jsonl"),
        verdicts=data.read_json_lines(results / "verdicts.jsonl"),
        as_is=data.read_json_lines(as_is) if as_is.exists() else [],
        runs={path.stem: load_json(path) for path in sorted((results / "runs").glob("*.json"))},
        bench={path.stem: load_json(path) for path in sorted((results / "bench").glob("*.json"))},
        endpoints={path.stem: data.read_json_lines(path)
                   for path in sorted((results / "endpoint").glob("*.jsonl"))},
        peer_facts={path.stem: load_json(path)
                    for path in sorted((results / "endpoint").glob("*.json"))})
    check_order(results, files.generations, files.verdicts)
    if files.as_is:
        check_order(results / "as-is", scored_as_is(files.generations), files.as_is)
    return files


def scored_as_is(generations):
    """Those that are also scored without the sanitiser: the report says of them what it changes."""
    return [line for line in generations if line["kind"] in ("greedy", "qwen-prompt")]


def check_order(results, generations, verdicts):
    if [(g["task_id"], g["sample"]) for g in generations] != \
            [(v["task_id"], v["sample"]) for v in verdicts]:
        raise data.DataError(f"{results}: the verdicts are not those of generations.jsonl, "
                             "line by line; score it again")


def passes(verdict):
    """(base tests, base and plus tests)"""
    base = verdict["base"] == "pass"
    return base, base and verdict["plus"] == "pass"


def by_run(generations, verdicts):
    """{name: {(task_id, draw): (generation, verdict)}}"""
    runs = {}
    for generation, verdict in zip(generations, verdicts):
        for name in generation["runs"]:
            request = generation["task_id"], generation["draw"]
            runs.setdefault(name, {})[request] = generation, verdict
    return runs


def share(passed, count):
    low, high = estimates.wilson(passed, count)
    return {"passed": passed, "tasks": count, "value": passed / count, "low": low, "high": high}


def accuracy(outputs, asked=None):
    """pass@1 of a run with one output for each task; a task without an output is not passed.
    asked: how many tasks there were, where some may have no output."""
    verdicts, asked = [passes(verdict) for _, verdict in outputs.values()], asked or len(outputs)
    return {"base": share(sum(base for base, _ in verdicts), asked),
            "plus": share(sum(plus for _, plus in verdicts), asked),
            "cut_at_limit": sum(g["finish"] == "length" for g, _ in outputs.values())}


def pass_at_ks(outputs):
    """pass@k of a run with several samples, for each k that every task has samples for."""
    tasks = {}
    for (task_id, _), (_, verdict) in outputs.items():
        tasks.setdefault(task_id, []).append(passes(verdict))
    least = min(map(len, tasks.values()))
    found = {}
    for k in (k for k in (1, 5, 10, 100) if k <= least):
        found[str(k)] = {}
        for index, tests in enumerate(("base", "plus")):
            values = [estimates.pass_at_k(len(verdicts), sum(v[index] for v in verdicts), k)
                      for verdicts in tasks.values()]
            low, high = estimates.bootstrap(values)
            found[str(k)][tests] = {"value": estimates.mean(values), "low": low, "high": high}
    return {"tasks": len(tasks), "samples": least, "k": found}


def pass_at_ks_of_common(runs):
    """The same over the tasks that all runs have, where there are several runs."""
    if len(runs) < 2:
        return {}
    tasks = set.intersection(*({task_id for task_id, _ in outputs} for outputs in runs.values()))
    if not tasks:
        return {}
    return {name: pass_at_ks({key: value for key, value in outputs.items() if key[0] in tasks})
            for name, outputs in runs.items()}


def latency_of(run, order):
    """Percentiles; of a run that was interrupted there are none, for its pieces begin and end with
    fewer requests in flight."""
    finished = run["pieces"][0]["finished_s"]
    if len(run["pieces"]) > 1 or len(finished) < len(order):
        return None
    values = list(follow.latencies(order, finished, run["run"]["batch"]).values())
    return {f"p{p}": round(estimates.percentile(values, p / 100), 3) for p in PERCENTILES}


def speed(run, outputs):
    """Tokens over time of the whole run: ramp-up, stragglers and all. Loading is not in it, nor are
    tokens that an interruption threw away; the time that they took is."""
    pieces = run["pieces"]
    seconds = sum(piece["generation_s"] for piece in pieces)
    timed = {name for piece in pieces for name in piece["finished_s"]}
    names = {f"{task_id}#{draw}": generation
             for (task_id, draw), (generation, _) in outputs.items()}
    generated = sum(len(names[name]["token_ids"]) for name in timed)
    prompt = sum(piece["tokens"]["prompt"] for piece in pieces)
    shared = sum(piece["tokens"]["shared"] for piece in pieces)  # not computed
    cpu = sum(piece["cpu_s"] for piece in pieces)
    return {"requests": len(outputs), "pieces": len(pieces), "seconds": seconds,
            "generated": generated, "prompt": prompt,
            "shared": shared, "shared_share": shared / prompt,
            "generated_per_s": generated / seconds,
            "cpu_s": cpu, "generated_per_cpu_s": generated / cpu,
            "others_cpu_share": sum(p["others_cpu_share"] * p["generation_s"]
                                    for p in pieces) / seconds,
            "untimed_requests": len(outputs) - len(timed),
            "latency_s": latency_of(run, list(names))}


def compare(ours, theirs):
    """How many requests of both have other outputs, and other verdicts."""
    common = [key for key in ours if key in theirs]
    pairs = [(ours[key], theirs[key]) for key in common]
    ids = [(a["token_ids"], b["token_ids"]) for (a, _), (b, _) in pairs]
    known = all(a is not None and b is not None for a, b in ids)
    return {"requests": len(common),
            "prompt_tokens": sum(a["prompt_tokens"] != b["prompt_tokens"]
                                 for (a, _), (b, _) in pairs),
            "token_ids": sum(a != b for a, b in ids) if known else None,
            "texts": sum(a["text"] != b["text"] for (a, _), (b, _) in pairs),
            "base": sum(passes(v)[0] != passes(w)[0] for (_, v), (_, w) in pairs),
            "plus": sum(passes(v)[1] != passes(w)[1] for (_, v), (_, w) in pairs)}


def differences(outputs, names):
    """Every pair of runs that have requests in common."""
    names = [name for name in names if name in outputs]  # an endpoint may have given none
    return [{"a": a, "b": b, **compare(outputs[a], outputs[b])}
            for a, b in itertools.combinations(names, 2) if outputs[a].keys() & outputs[b].keys()]


def fixed_length(report):
    """{batch: rates} of headrace bench: minimum, median and maximum of its repetitions."""
    return {str(batch["batch"]): {key: batch[key] for key in (
        "prefill_tokens_per_s", "decode_tokens_per_s", "generated_tokens_per_s")}
        for batch in report["batches"]}


def endpoint_speed(records):
    """Σ tokens of successes over wall time, waits and failures in it; of each session apart from
    the others, so that an interruption does not count."""
    header, records = records[0], records[1:]
    latest = journal.latest(records)
    good = [record for record in latest.values() if record["finish"] is not None]
    sessions = {}
    for record in records:
        sessions.setdefault(record["session"], []).append(record)
    seconds = sum(max(r["ended"] for r in group) - min(r["started"] for r in group)
                  for group in sessions.values())
    generated = sum(record["usage"]["completion_tokens"] for record in good)
    failures = [failure for record in records for failure in record["failures"]]
    return {"label": header["label"], "model": header["model"], "api": header["api"],
            "concurrency": header["concurrency"], "requests": len(latest), "done": len(good),
            "failed": len(latest) - len(good), "failed_attempts": len(failures),
            "waited_s": sum(record["waited_s"] for record in records), "sessions": len(sessions),
            "seconds": seconds, "generated": generated,
            "generated_per_s": generated / seconds if seconds else None,
            "latency_s": {f"p{p}": round(estimates.percentile([r["latency_s"] for r in good],
                                                              p / 100), 3)
                          for p in PERCENTILES} if good else None}


def is_twin(facts, mine, run, headrace):
    """The same requests on the same machine, in turn. facts: where the study ran the server itself,
    on its own model file."""
    if not facts or not mine or not headrace or mine.keys() != headrace.keys():
        return False
    return all(piece["machine"] == facts["machine"] for piece in run["pieces"])


def peers(files, outputs, speeds):
    """Each journal of an endpoint beside headrace's run of the same tasks at that batch size."""
    found = {}
    for name, records in files.endpoints.items():
        entry = endpoint_speed(records)
        mine = outputs.get(name)
        twin = f"peer-batch{entry['concurrency']}"
        facts = files.peer_facts.get(name)
        if facts:
            entry["others_cpu_share"] = facts["others_cpu_share"]
        if is_twin(facts, mine, files.runs.get(twin), outputs.get(twin)):
            entry["headrace_run"] = twin
            entry["headrace_over_it"] = speeds[twin]["generated_per_s"] / entry["generated_per_s"]
            entry["against_headrace"] = compare(outputs[twin], mine)
        if mine:
            entry["accuracy"] = accuracy(mine, entry["requests"])
        found[name] = entry
    return found


def label_of(files, name):
    return files.endpoints[name][0]["label"]


def results_of(files):
    outputs = by_run(files.generations, files.verdicts)
    runs = {name: run["run"] for name, run in files.runs.items()}
    ordered = sorted(runs, key=lambda name: (runs[name]["ranks"], runs[name]["batch"]))
    kinds = {name: runs[name]["kind"] for name in ordered}
    one_each = [name for name, kind in kinds.items() if kind != "sampled"]
    speeds = {name: speed(run, outputs[name]) for name, run in files.runs.items()}
    as_is = by_run(scored_as_is(files.generations), files.as_is)
    shown = REFERENCE if REFERENCE in files.runs else one_each[0]
    return {
        "accuracy": {name: accuracy(outputs[name]) for name in one_each},
        "accuracy_without_sanitiser": {name: accuracy(as_is[name]) for name in one_each
                                       if name in as_is and (name == shown
                                                             or kinds[name] == "qwen-prompt")},
        "pass_at_k": {name: pass_at_ks(outputs[name]) for name, kind in kinds.items()
                      if kind == "sampled"},
        "pass_at_k_of_common_tasks": pass_at_ks_of_common(
            {name: outputs[name] for name, kind in kinds.items() if kind == "sampled"}),
        "speed": speeds,
        "fixed_length": {name: fixed_length(report) for name, report in files.bench.items()},
        "differences": [entry for kind in ("greedy", "sampled") for entry in differences(
            outputs, [name for name in kinds if kinds[name] == kind])],
        "prompt_difference": [compare_prompts(outputs, shown, name) for name, kind in kinds.items()
                              if kind == "qwen-prompt"],
        "peers": peers(files, outputs, speeds),
        "peer_differences": [entry for entry in differences(outputs, list(files.endpoints))
                             if label_of(files, entry["a"]) == label_of(files, entry["b"])],
    }


def compare_prompts(outputs, a, b):
    """Verdicts that change with the prompt, both ways: a paired comparison."""
    pairs = [(passes(outputs[a][key][1]), passes(outputs[b][key][1]))
             for key in outputs[a] if key in outputs[b]]
    return {"a": a, "b": b, "tasks": len(pairs),
            **{f"{tests}_only_{which}": sum(mine[index] and not other[index]
                                            for mine, other in (pairs if which == "a" else
                                                                [(y, x) for x, y in pairs]))
               for index, tests in enumerate(("base", "plus")) for which in ("a", "b")}}
