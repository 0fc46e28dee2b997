"""From the folder of the runs to the measured files of a results folder."""
import datetime
import json
import shutil

from study import carry, collect, data, generate, metrics, peer


def finished_runs(setting, study_plan, tasks):
    """Those of the plan, and those beside peers, of this start or an earlier one."""
    runs = [*study_plan.runs, *study_plan.peer_runs]
    found = [run for run in runs if generate.is_done(setting, run, tasks)]
    if not any(run.kind == "greedy" for run in found):
        raise data.DataError("no greedy run is done, so there is nothing to report yet")
    return found


def keep_unfinished(setting, study_plan, finished, results):
    """What --go-on needs of the runs that have begun; no report has it."""
    shutil.rmtree(results / "unfinished", ignore_errors=True)
    for run in (*study_plan.runs, *study_plan.peer_runs):
        source, target = setting.work / "runs" / run.name, results / "unfinished" / run.name
        if run in finished or not generate.done_in(source / "out.jsonl"):
            continue
        target.mkdir(parents=True)
        for name in carry.STATE:
            if (source / name).exists():
                shutil.copyfile(source / name, target / name)


def is_unfinished_peer(setting, study_plan, made, name):
    """Of a peer that was interrupted: it begins anew where the study goes on."""
    names = [peer.journal_name(label, run.batch) for label in made.get("peers", {})
             for run in study_plan.peer_runs]
    return name in names and not (setting.work / "endpoint" / f"{name}.json").exists()


def gather(setting, study_plan, made, tasks, results):
    """The measured files, without what only this machine understands. The verdicts, which are of
    other generations now, have to come back by scoring."""
    for name in ("verdicts.jsonl", "as-is/verdicts.jsonl"):
        (results / name).unlink(missing_ok=True)
    finished = finished_runs(setting, study_plan, tasks)
    for folder in ("runs", "bench", "endpoint"):
        shutil.rmtree(results / folder, ignore_errors=True)
        (results / folder).mkdir(parents=True)
    keep_unfinished(setting, study_plan, finished, results)
    named = []
    for run in finished:
        source = setting.work / "runs" / run.name
        named.append((run.name, list(collect.outputs_of_run(source / "out.jsonl", run))))
        pieces = metrics.load_json(source / "pieces.json")
        generate.write_whole(results / "runs" / f"{run.name}.json",
                             json.dumps({"run": vars(run), "pieces": pieces}, indent=1) + "\n")
    for source in (setting.work / "bench").glob("stages*.json"):
        shutil.copyfile(source, results / "bench" / source.name)
    for source in sorted((setting.work / "endpoint").glob("*.jsonl")):
        records = data.read_json_lines(source)
        if is_unfinished_peer(setting, study_plan, made, source.stem):
            continue
        named.append((source.stem, list(collect.outputs_of_endpoint(records))))
        collect.write(results / "endpoint" / source.name,
                      [{key: value for key, value in record.items() if key != "text"}
                       for record in records])
    for source in sorted((setting.work / "endpoint").glob("*.json")):
        shutil.copyfile(source, results / "endpoint" / source.name)
    found = collect.distinct(named)
    collect.write(results / "generations.jsonl",
                  collect.lines_of(found, [task.task_id for task in tasks]))
    made["missing_runs"] = [run.name for run in study_plan.runs if run not in finished]
    made["finished"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    generate.write_whole(results / "manifest.json", json.dumps(made, indent=1) + "\n")
