#!/usr/bin/env python3
"""Scores generations on MBPP+ with EvalPlus, each in a sandbox of its own.

  python3 -m scoring.score --data MbppPlus.jsonl --generations G.jsonl --output verdicts.jsonl

Run in experiments/mbpp with the Python of an environment that has requirements-scoring.txt. A line
of G.jsonl is {"task_id": "Mbpp/2", "sample": 0, "text": "..."}; the verdict of each comes in the
same order, and scoring.json beside it says what judged. Verdicts are kept in --work: a run that was
stopped goes on, and a text that was scored before, for the same task with the same data, versions
and limits, is not run again.

Exit codes: 0 done; 2 usage; 65 a bad input file; 69 no sandbox or no EvalPlus; 74 I/O; 75 another
run has --work, try again.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

from scoring import inputs, journal, sandbox, trial

OK, BAD_INPUT, UNAVAILABLE, IO, TRY_AGAIN = 0, 65, 69, 74, 75
INTERRUPTED = 130
STATUSES = ("pass", "fail", "timeout")
REPORT_SECONDS = 15


def say(text):
    print(f"score: {text}", file=sys.stderr, flush=True)


def reference_outputs(box, data, work, settings):
    """The folder with what EvalPlus expects of each task; computed where it is not there."""
    folder = work / f"references-{journal.key(settings, '', '')[:16]}"
    if folder.is_dir():
        return folder
    say("computing the expected outputs from the reference solutions")
    with tempfile.TemporaryDirectory(prefix="references-", dir=work) as name:
        unfinished = pathlib.Path(name) / "new"
        unfinished.mkdir()
        shutil.copyfile(data, unfinished / "data.jsonl")
        outcome = box.run({"step": "references"}, folder=unfinished,
                          limits=sandbox.REFERENCE_LIMITS)
        if outcome.last("tasks") is None:
            raise inputs.BadInput(f"{data}: the reference solutions do not run through "
                                  f"({outcome.ended}): {outcome.last_line()}")
        (unfinished / "data.jsonl").unlink()
        shutil.rmtree(unfinished / "evalplus")
        unfinished.rename(folder)
    return folder


def judge(box, folder, task_id, text, sanitize):
    """EvalPlus's verdict on one text; a sandbox that a candidate brought down is a failure."""
    task = folder / f"{task_id.replace('/', '_')}.pickle"
    order = {"step": "candidate", "text": text, "sanitize": sanitize}
    for attempt in (1, 2):
        start = time.monotonic()
        outcome = box.run(order, task=task)
        verdict = outcome.last("base")
        if verdict and verdict["base"] in STATUSES and verdict["plus"] in STATUSES:
            return verdict
        if any("ready" in message for message in outcome.messages):
            return {"solution": None, "base": "fail", "plus": "fail",
                    "seconds": round(time.monotonic() - start, 3),
                    "note": f"the sandbox ended without a verdict: {outcome.ended}"}
    raise trial.Unavailable(f"{task_id}: the sandbox did not start ({outcome.ended}): "
                            f"{outcome.last_line()}")


class Scoring:
    """Brings the verdicts that are missing into the journal."""

    def __init__(self, box, folder, book, arguments):
        self._box, self._folder, self._book = box, folder, book
        self._jobs, self._sanitize = arguments.jobs, not arguments.as_is
        self._reported = time.monotonic()

    def run(self, missing):
        """missing: {key: (task_id, text)}"""
        slow = []
        pool = concurrent.futures.ThreadPoolExecutor(self._jobs)
        runs = {pool.submit(self._judge, *missing[key]): key for key in missing}
        try:
            for done, run in enumerate(concurrent.futures.as_completed(runs), start=1):
                self._keep(runs[run], run.result(), slow)
                self._report(done, len(missing))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        # A busy machine can make a right program miss a time limit: again, nothing beside it.
        for done, key in enumerate(slow, start=1):
            self._book.add(key, self._judge(*missing[key]))
            self._report(done, len(slow), " again, alone")

    def _judge(self, task_id, text):
        return judge(self._box, self._folder, task_id, text, self._sanitize)

    def _keep(self, key, verdict, slow):
        passed = verdict["base"] == verdict["plus"] == "pass"
        if not passed and verdict["seconds"] >= self._box.limits["min_time_limit"]:
            slow.append(key)
        else:
            self._book.add(key, verdict)

    def _report(self, done, of, how=""):
        if done == of or time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            say(f"{done} of {of} scored{how}")


def write(path, text):
    """The whole file or none."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text)
    unfinished.replace(path)


def score(arguments):
    tasks, digest = inputs.read_data(arguments.data)
    generations = inputs.read_generations(arguments.generations, tasks)
    if not arguments.output.parent.is_dir():
        raise OSError(f"{arguments.output}: the folder is not there")
    limits = {"min_time_limit": arguments.min_time_limit}
    box, name, versions = trial.open_sandbox(limits, arguments.allow_unsafe_scoring)
    if not box.confined:
        say("NOT SAFE: generated programs run without a sandbox")
    settings = {**versions, "data_sha256": digest}
    record = {**settings, "sandbox": name, "limits": box.limits, "python_hash_seed": 0,
              "sanitiser": "none" if arguments.as_is else "evalplus.sanitize"}
    arguments.work.mkdir(parents=True, exist_ok=True)
    with journal.Journal(arguments.work / "verdicts.jsonl") as book:
        folder = reference_outputs(box, arguments.data, arguments.work, settings)
        keys = [journal.key(record, task_id, text) for task_id, _, text in generations]
        missing = {key: (task_id, text) for key, (task_id, _, text) in zip(keys, generations)
                   if key not in book.verdicts}
        say(f"{len(generations)} generations, {len(missing)} programs to score; sandbox: {name}")
        Scoring(box, folder, book, arguments).run(missing)
        verdicts = [{"task_id": task_id, "sample": sample, **book.verdicts[key]}
                    for key, (task_id, sample, _) in zip(keys, generations)]
    write(arguments.output, "".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    write(arguments.output.with_name("scoring.json"), json.dumps(record, indent=2) + "\n")
    base = sum(verdict["base"] == "pass" for verdict in verdicts)
    plus = sum(verdict["base"] == verdict["plus"] == "pass" for verdict in verdicts)
    say(f"of {len(verdicts)} pass {base} the base tests, {plus} these and the plus tests "
        f"(EvalPlus {versions['evalplus']})")


def parse(arguments):
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    parser = argparse.ArgumentParser(prog="scoring.score", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="FILE",
                        help="MBPP+ as EvalPlus publishes it (JSON Lines, not compressed)")
    parser.add_argument("--generations", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--work", type=pathlib.Path, default=cache / "headrace" / "scoring",
                        metavar="DIR", help="expected outputs and verdicts so far (%(default)s)")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2),
                        help="sandboxes at a time (half the cores: %(default)s)")
    parser.add_argument("--min-time-limit", type=float, metavar="S",
                        default=sandbox.LIMITS["min_time_limit"],
                        help="seconds for a test, at least (EvalPlus's own: %(default)s)")
    parser.add_argument("--as-is", action="store_true",
                        help="do not run EvalPlus's sanitiser on the texts first")
    parser.add_argument("--allow-unsafe-scoring", action="store_true",
                        help="without a working sandbox, run generated programs bare")
    options = parser.parse_args(arguments)
    if options.jobs < 1 or options.min_time_limit <= 0:
        parser.error("--jobs and --min-time-limit must be positive")
    options.work = options.work.absolute()
    return options


def main(arguments=None):
    try:
        score(parse(arguments))
        return OK
    except inputs.BadInput as error:
        say(error)
        return BAD_INPUT
    except trial.Unavailable as error:
        say(error)
        return UNAVAILABLE
    except journal.Busy as error:
        say(error)
        return TRY_AGAIN
    except OSError as error:
        say(error)
        return IO
    except KeyboardInterrupt:
        say("stopped; the verdicts so far are kept")
        os._exit(INTERRUPTED)  # and with this process its sandboxes; a return would wait for them


if __name__ == "__main__":
    sys.exit(main())
