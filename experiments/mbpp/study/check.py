"""Compares the token ids of a new run with those of committed results."""
from study import data, metrics


def token_ids(generations):
    """{request: {token ids: names of the runs}}, of headrace's own outputs."""
    found = {}
    for line in generations:
        if line["token_ids"] is not None:
            key = line["kind"], line["task_id"], line["draw"]
            found.setdefault(key, {})[tuple(line["token_ids"])] = line["runs"]
    return found


def same_inputs(old, new):
    """What makes a comparison void, as lines of text."""
    return [f"{name}: {old[name]['sha256']} there, {new[name]['sha256']} here"
            for name in ("model", "data") if old[name]["sha256"] != new[name]["sha256"]] + \
           [f"sampling parameters of {kind} are others" for kind in old["sampling"]
            if old["sampling"][kind] != new["sampling"].get(kind)]


def compare(committed, fresh):
    """(requests compared, lines about those that differ)"""
    old, new = token_ids(committed.generations), token_ids(fresh.generations)
    common = [key for key in new if key in old]
    wrong = []
    for key in common:
        for ids, runs in new[key].items():
            if ids not in old[key]:
                kind, task_id, draw = key
                wrong.append(f"{kind} {task_id}#{draw}: other token ids in {', '.join(runs)}")
    return len(common), wrong


def speeds(committed, fresh):
    """Lines with the tokens/s of runs that both have; they are not compared."""
    old, new = (metrics.results_of(files)["speed"] for files in (committed, fresh))
    rate = lambda speed, name: f"{speed[name]['generated_per_s']:8.1f}"
    return [f"  {name:32} {rate(old, name)} there {rate(new, name)} here"
            for name in new if name in old]


def check(results, fresh_results, say):
    """Whether every request of the new run that the committed results have gave their token ids."""
    committed, fresh = metrics.read(results), metrics.read(fresh_results)
    void = same_inputs(committed.manifest, fresh.manifest)
    if void:
        raise data.DataError(f"{results} is of something else: " + "; ".join(void))
    count, wrong = compare(committed, fresh)
    if not count:
        raise data.DataError(f"{results} has no request in common with this run")
    for line in wrong:
        say(line)
    say("tokens/s, which depend on the machine and are not compared:")
    for line in speeds(committed, fresh):
        say(line)
    say(f"check: {count} requests compared with {results}, {len(wrong)} differ")
    return not wrong
