"""The study from requests to report: python3 -m study.main --help

Started again, it goes on where it stopped, in the middle of a run, too. Exit codes: 0 done; 1 the
outputs are not those of the results given with --check; 2 usage; 65 bad data; 70 a step failed;
75 stopped, start it again.
"""
import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from study import carry, check, claims, collect, data, gather, generate, manifest, metrics, page
from study import peer, plan, plots, report

HERE = pathlib.Path(__file__).resolve().parent.parent
LOCK_S = 90  # a program that was told to end may write its last results


def say(text):
    print(f"{time.strftime('%H:%M:%S')} study: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_one(work):
    """The descriptor of a lock that this study and what it starts hold."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        end = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise generate.RunError(f"{work} is in use by another run") from None
                time.sleep(0.5)
        os.set_inheritable(lock.fileno(), True)
        yield lock.fileno()


def plan_of(arguments, tasks):
    if arguments.quick:
        return plan.quick(len(tasks))
    return plan.full(len(tasks), qwen_prompt="qwen" in arguments.model.name.lower())


def add_peers(setting, peers, about, made):
    """How the other programs were built and started, into the manifest."""
    for other in peers:
        made.setdefault("peers", {})[other.label] = {"command": other.command_without_folders(),
                                                     "about": about}
    if peers:
        generate.write_whole(setting.work / "manifest.json", json.dumps(made, indent=1) + "\n")


def begin(setting, study_plan, data_file, tasks):
    """The manifest of this study, which is written once; it must not be of another study."""
    path = setting.work / "manifest.json"
    made = manifest.make(setting.work.name, setting, study_plan, data_file, tasks)
    if not path.exists():
        generate.write_whole(path, json.dumps(made, indent=1) + "\n")
        return made
    there = metrics.load_json(path)
    other = manifest.same_study(there, made)
    if other:
        raise data.DataError(f"{setting.work} holds a study with another {', '.join(other)}; "
                             "move it away, or name another --work")
    return there


def default_system(program, model):
    """The system message that the model's chat template puts first."""
    text = subprocess.run([program, "inspect", model], capture_output=True, text=True, check=True,
                          stdin=subprocess.DEVNULL).stdout
    found = re.search(r'^chat +chatml, default system message "(.*)"$', text, re.MULTILINE)
    if not found:
        raise data.DataError(f"{model}: peers are run with ChatML models only")
    return found[1]


def run_all(setting, study_plan, peers, data_file, tasks, fixed_length):
    for ranks, threads in plan.STAGES if fixed_length else ():
        generate.bench(setting, study_plan, ranks, threads, say)
    for run in study_plan.runs:
        generate.generate(setting, run, tasks, say)
    # In turn, so that both sides meet the same machine.
    for run in study_plan.peer_runs if peers else ():
        peer.forget_elsewhere(setting, run, peers)
        generate.generate(setting, run, tasks, say)
        for other in peers:
            peer.run(setting, other, run.batch, run.tasks, data_file,
                     default_system(setting.program, setting.model), say)


def try_scoring(setting, arguments):
    """Whether there is a sandbox is known in seconds, and generation takes hours."""
    code = setting.child.run([arguments.scoring_python, "-m", "scoring.trial",
                              *["--allow-unsafe-scoring"] * arguments.allow_unsafe_scoring],
                             setting.lock, cwd=HERE)
    if code != 0:
        raise generate.RunError("scoring does not work here, see above; nothing was generated")


def score(setting, arguments, data_file, results):
    """EvalPlus's verdicts, with its sanitiser and without."""
    generations = results / "generations.jsonl"
    as_is = setting.work / "as-is.jsonl"
    collect.write(as_is, metrics.scored_as_is(data.read_json_lines(generations)))
    for source, folder, options in ((generations, results, []),
                                    (as_is, results / "as-is", ["--as-is"])):
        folder.mkdir(exist_ok=True)
        command = [arguments.scoring_python, "-m", "scoring.score", "--data", data_file,
                   "--generations", source, "--output", folder / "verdicts.jsonl",
                   "--work", setting.work.parent / "scoring", *options]
        command += ["--allow-unsafe-scoring"] * arguments.allow_unsafe_scoring
        code = setting.child.run(command, setting.lock, cwd=HERE)
        if code != 0:
            raise generate.RunError(f"scoring ended with exit code {code}, see its message above")


def write_report(results):
    files = metrics.read(results)
    computed = metrics.results_of(files)
    found = claims.claims_of(files, computed)
    drawn = plots.draw(files, computed)
    text = report.markdown(files, computed, found, metrics.load_json(results / "scoring.json"),
                           metrics.load_json(claims.PUBLISHED), list(drawn))
    for name, svg in drawn.items():
        generate.write_whole(results / f"{name}.svg", svg)
    generate.write_whole(results / "results.json", json.dumps(computed, indent=1) + "\n")
    generate.write_whole(results / "claims.json", claims.text_of(found))
    generate.write_whole(results / "report.md", text)
    generate.write_whole(results / "report.html", page.page(text, drawn, found))


def results_folder(arguments, made):
    if arguments.results:
        return arguments.results
    if arguments.quick or arguments.check or made["tasks"] < data.TASKS:
        return arguments.work / "results"
    return HERE / "results" / f"{made['started'][:10]}-{made['name']}"


def study(arguments):
    tasks = data.read_tasks(arguments.data, arguments.tasks)
    study_plan = plan_of(arguments, tasks)
    with only_one(arguments.work) as lock:
        setting = generate.Setting(arguments.program, arguments.model, arguments.work,
                                   generate.Child(), lock)
        if arguments.go_on and not (arguments.work / "manifest.json").exists():
            say(f"going on from {arguments.go_on}")
            carry.restore(arguments.go_on, arguments.work)
        made = begin(setting, study_plan, arguments.data, tasks)
        add_peers(setting, arguments.peer, arguments.peer_about, made)
        results = results_folder(arguments, made)
        if not arguments.report:
            try_scoring(setting, arguments)
            # A check compares token ids, which the fixed-length run has not.
            run_all(setting, study_plan, arguments.peer, arguments.data, tasks,
                    fixed_length=not arguments.check)
        results.mkdir(parents=True, exist_ok=True)
        say("collecting the outputs")
        gather.gather(setting, study_plan, made, tasks, results)
        say("scoring")
        score(setting, arguments, arguments.data, results)
        write_report(results)
        say(f"report: {results}/report.html")
        if arguments.check:
            return 0 if check.check(arguments.check, results, say) else 1
    return 0


def parse(arguments):
    parser = argparse.ArgumentParser(prog="study.main", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = lambda text: pathlib.Path(text).absolute()
    parser.add_argument("--program", type=folder, required=True, help="headrace")
    parser.add_argument("--model", type=folder, required=True)
    parser.add_argument("--data", type=folder, required=True, help="MbppPlus.jsonl")
    parser.add_argument("--work", type=folder, required=True,
                        help="folder of this study; its last part is the study's name")
    parser.add_argument("--results", type=folder, help="default: results/DATE-NAME; below --work "
                        "for --quick, --check and less than all tasks")
    parser.add_argument("--scoring-python", default=sys.executable, metavar="FILE",
                        help="a Python that has requirements-scoring.txt")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="only the report, of what is done")
    parser.add_argument("--tasks", type=int, metavar="N", help="only the first N")
    parser.add_argument("--peer", type=peer.parse, action="append", default=[],
                        metavar="LABEL=COMMAND", help="a server to run in turn with headrace")
    parser.add_argument("--peer-about", metavar="TEXT", help="what the servers are, for the report")
    parser.add_argument("--check", type=folder, metavar="RESULTS")
    parser.add_argument("--go-on", type=folder, metavar="RESULTS",
                        help="of an unfinished study that --work does not have")
    parser.add_argument("--allow-unsafe-scoring", action="store_true")
    return parser.parse_args(arguments)


def main(arguments=None):
    try:
        return study(parse(arguments))
    except data.DataError as error:
        say(error)
        return 65
    except generate.Stopped:
        say("stopped; start it again to go on")
        return generate.STOPPED
    except (generate.RunError, OSError, subprocess.SubprocessError) as error:
        say(error)
        return 70


if __name__ == "__main__":
    sys.exit(main())
