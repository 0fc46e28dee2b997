"""A study that goes on elsewhere: the folder of its runs, made from a results folder.

What a results folder has of a finished run is all that the report needs. Of a run that was
interrupted it has headrace's own results file with its manifest, which headrace resumes. Verdicts
are carried over as well: they are looked up by all that they depend on.
"""
import json
import shutil

from scoring import journal as verdicts
from study import data, generate, metrics

STATE = ("out.jsonl", "out.jsonl.manifest.json", "pieces.json")


def record_of(generation):
    """What is kept of a line of headrace's results, as such a line."""
    return {"custom_id": f"{generation['task_id']}#{generation['draw']}", "error": None,
            "response": {"body": {
                "choices": [{"message": {"content": generation["text"]},
                             "token_ids": generation["token_ids"],
                             "finish_reason": generation["finish"]}],
                "usage": {"prompt_tokens": generation["prompt_tokens"]}}}}


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def journal_of(path, generations):
    """The journal of an endpoint, with the texts that it had."""
    texts = {(g["task_id"], g["draw"]): g["text"] for g in generations}
    header, *records = data.read_json_lines(path)
    last = {(r["task_id"], r["draw"]): i for i, r in enumerate(records)}
    for index, record in enumerate(records):
        key = record["task_id"], record["draw"]
        record["text"] = texts.get(key) if last[key] == index else None
    return lines([header, *records])


def keep_verdicts(results, generations, journal_file):
    """The verdicts of a results folder into the journal of scoring, which may have others. There
    are none where the report was interrupted."""
    journal_file.parent.mkdir(parents=True, exist_ok=True)
    with verdicts.Journal(journal_file) as book:
        for folder, scored in ((results, generations),
                               (results / "as-is", metrics.scored_as_is(generations))):
            if not (folder / "verdicts.jsonl").exists():
                continue
            record = metrics.load_json(folder / "scoring.json")
            found = data.read_json_lines(folder / "verdicts.jsonl")
            metrics.check_order(folder, scored, found)
            for generation, verdict in zip(scored, found):
                key = verdicts.key(record, generation["task_id"], generation["text"])
                if key not in book.verdicts:
                    book.add(key, {name: value for name, value in verdict.items()
                                   if name not in ("task_id", "sample")})


def restore(results, study_folder):
    """Fills the folder, which has no manifest yet, and the folder of scoring beside it. It can be
    done again where it was interrupted."""
    work = study_folder.with_name(study_folder.name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    made = metrics.load_json(results / "manifest.json")
    generations = data.read_json_lines(results / "generations.jsonl")
    of_run = lambda name: [g for g in generations if name in g["runs"]]
    for path in sorted((results / "runs").glob("*.json")):
        folder = work / "runs" / path.stem
        folder.mkdir(parents=True)
        generate.write_whole(folder / "out.jsonl", lines(map(record_of, of_run(path.stem))))
        pieces = metrics.load_json(path)["pieces"]
        generate.write_whole(folder / "pieces.json", json.dumps(pieces))
    for path in sorted((results / "bench").glob("*.json")):
        (work / "bench").mkdir(parents=True, exist_ok=True)
        generate.write_whole(work / "bench" / path.name, path.read_text(encoding="utf-8"))
    for path in sorted((results / "endpoint").glob("*.json*")):
        (work / "endpoint").mkdir(parents=True, exist_ok=True)
        text = journal_of(path, of_run(path.stem)) if path.suffix == ".jsonl" else \
            path.read_text(encoding="utf-8")
        generate.write_whole(work / "endpoint" / path.name, text)
    for path in sorted((results / "unfinished").glob("*/")):
        shutil.copytree(path, work / "runs" / path.name)
    keep_verdicts(results, generations, work.parent / "scoring" / "verdicts.jsonl")
    for key in ("missing_runs", "finished"):
        made.pop(key, None)
    work.mkdir(exist_ok=True)
    study_folder.mkdir(parents=True, exist_ok=True)
    for source in work.iterdir():
        shutil.rmtree(study_folder / source.name, ignore_errors=True)
        source.rename(study_folder / source.name)
    # Last: a folder without it holds no study.
    generate.write_whole(study_folder / "manifest.json", json.dumps(made, indent=1) + "\n")
    work.rmdir()
