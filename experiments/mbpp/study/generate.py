"""Runs headrace: one run of the plan, in as many pieces as it is interrupted."""
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

from study import follow, manifest, prompts

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
DEVICE = ("--device", "cpu")  # the study is of CPUs, on a machine with a GPU as well
TIMED_SHARE = 0.75  # of the requests of a run; one that cannot have as many begins again
SOME_FAILED = 1  # exit code of headrace: every request has a record, some of an error
STOPPED = 75  # and of this study: start it again


class RunError(Exception):
    pass


class Stopped(Exception):
    """The study was asked to stop; what is done is kept."""


def dies_with_us(command):
    """The command, so that it is asked to end when the study ends, however that comes."""
    prefix = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return [*prefix, *map(str, command)]


class Child:
    """The program that runs at the moment. A signal to the study ends it in order."""

    def __init__(self):
        self._process = None
        self.stop = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, *_):
        self.stop = True
        if self._process is not None:
            self._process.terminate()

    def run(self, command, lock=None, **options):
        """The exit code. lock: a file descriptor that is held for as long as the child lives."""
        if self.stop:
            raise Stopped
        # A session of its own: Ctrl-C reaches the study, which then asks the child once.
        self._process = subprocess.Popen(dies_with_us(command), stdin=subprocess.DEVNULL,
                                         start_new_session=True,
                                         pass_fds=[] if lock is None else [lock], **options)
        if self.stop:  # the signal came before there was a process to end
            self._process.terminate()
        code = self._process.wait()
        self._process = None
        if self.stop:
            raise Stopped
        return code


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs have in common."""
    program: pathlib.Path
    model: pathlib.Path
    work: pathlib.Path
    child: Child
    lock: int


def command_of(program, ranks, command, arguments):
    """headrace alone, or under mpirun with settings that suit it."""
    if ranks == 1:
        return [program, command, *arguments], dict(os.environ)
    script = REPOSITORY / "launch" / "mpirun.sh"
    return ([script, "-q", "-np", ranks, command, *arguments],
            dict(os.environ, HEADRACE=str(program)))


def requests_of(run, tasks):
    return [prompts.request(task, draw, run.prompt, run.kind == "sampled")
            for task in tasks[:run.tasks] for draw in range(run.draws)]


def done_in(path):
    """custom_ids of whole lines without an error; a line that is torn does not count."""
    if not path.exists():
        return set()
    done = set()
    for line in path.read_bytes().split(b"\n")[:-1]:
        record = json.loads(line)
        if record["error"] is None:
            done.add(record["custom_id"])
    return done


def processor_ticks():
    """(ticks that any process of the machine took, all ticks) since it was started."""
    line = pathlib.Path("/proc/stat").read_text().split("\n")[0]
    fields = [int(word) for word in line.split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


class Processors:
    """What the machine's processors do from now on."""

    def __init__(self):
        self._ticks, self._own = processor_ticks(), self._own_seconds()

    @staticmethod
    def _own_seconds():
        """Of all children that have ended, and theirs."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def share_of_others(self):
        """The share of processor time that went to other programs than children of the study."""
        busy, total = (b - a for a, b in zip(self._ticks, processor_ticks()))
        own = (self._own_seconds() - self._own) * os.sysconf("SC_CLK_TCK")
        return round(max(0.0, busy - own) / total, 3) if total else 0.0


def piece_of(report, finished, others, started):
    """What is kept of headrace's report on one piece of a run; no paths."""
    stages = report["stages"]
    return {"outcome": report["outcome"], "started": started, "machine": manifest.machine(),
            "load_s": report["load_s"], "generation_s": report["generation_s"],
            "tokens": report["tokens"], "requests": report["requests"],
            "cpu_s": round(sum(stage["cpu_s"] for stage in stages), 3),
            "others_cpu_share": others,
            "steps": stages[0]["steps"],
            "stages": [{key: stage[key] for key in ("rank", "layers", "threads", "kernels", "cpu",
                                                    "seconds", "peak_memory_bytes")}
                       for stage in stages],
            "finished_s": finished}


def write_whole(path, text):
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def one_piece(setting, run, folder, resume):
    """Starts headrace once; (exit code, its piece, or None where it left no report)."""
    report_file = folder / "report.json"
    report_file.unlink(missing_ok=True)
    arguments = ["--model", setting.model, "--input", folder / "in.jsonl",
                 "--output", folder / "out.jsonl", "--max-batch", run.batch,
                 "--threads", run.threads, *DEVICE, "--order", "input", "--token-ids",
                 "--report", report_file, "--progress", "none"] + ["--resume"] * resume
    command, environment = command_of(setting.program, run.ranks, "generate", arguments)
    started, processors = int(time.time()), Processors()
    follower = follow.Follower(folder / "out.jsonl")
    with open(folder / "log", "ab") as log:
        try:
            code = setting.child.run(command, setting.lock, env=environment, stderr=log)
        except Stopped:
            code = STOPPED
        finally:
            follower.close()
    if not report_file.exists() or not report_file.stat().st_size:
        return code, None
    report = json.loads(report_file.read_text())
    finished = follow.finish_times(follower.seen, report["generation_s"])
    return code, piece_of(report, finished, processors.share_of_others(), started)


def pieces_of(setting, run):
    """Those that left a report; a piece that was killed has none."""
    path = setting.work / "runs" / run.name / "pieces.json"
    return json.loads(path.read_text()) if path.exists() else []


def timed_in(setting, run):
    return {name for piece in pieces_of(setting, run) for name in piece["finished_s"]}


def is_done(setting, run, tasks):
    """Whether the run has a result for each of its requests, and times of nearly all."""
    wanted = {request["custom_id"] for request in requests_of(run, tasks)}
    return (wanted <= done_in(setting.work / "runs" / run.name / "out.jsonl")
            and len(timed_in(setting, run)) >= TIMED_SHARE * len(wanted))


def generate(setting, run, tasks, say):
    """Brings the run to its end, from wherever it stands."""
    if is_done(setting, run, tasks):
        return
    folder = setting.work / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    requests = requests_of(run, tasks)
    wanted = {request["custom_id"] for request in requests}
    results = folder / "out.jsonl"
    done = done_in(results)
    untimed = done - timed_in(setting, run)
    if len(untimed) > (1 - TIMED_SHARE) * len(wanted):
        say(f"{run.name}: {len(untimed)} requests are of a killed piece and have no times; again")
        shutil.rmtree(folder)
        return generate(setting, run, tasks, say)
    say(f"{run.name}: {len(done)} of {len(wanted)} requests are done")
    write_whole(folder / "in.jsonl", "".join(json.dumps(request) + "\n" for request in requests))
    code, piece = one_piece(setting, run, folder, resume=results.exists())
    if piece:
        write_whole(folder / "pieces.json", json.dumps([*pieces_of(setting, run), piece]))
    if setting.child.stop:
        raise Stopped
    missing = wanted - done_in(results)
    if code == SOME_FAILED:
        raise RunError(f"{run.name}: {len(missing)} requests failed; {results} says why. They are "
                       f"not tried again while {folder} is there")
    if code != 0 or missing:
        log = (folder / "log").read_text(errors="replace").strip().split("\n")
        raise RunError(f"{run.name}: headrace ended with exit code {code}, {len(missing)} requests "
                       f"are missing; start the study again to go on. Its last words ({folder}):"
                       "\n  " + "\n  ".join(log[-5:]))
    rate = f", {piece['tokens']['generated'] / piece['generation_s']:.1f} tokens/s" if piece else ""
    say(f"{run.name}: done{rate}")


def bench(setting, plan, ranks, threads, say):
    """The fixed-length run: headrace bench, which times prefill and decode apart."""
    target = setting.work / "bench" / f"stages{ranks}.json"
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"fixed-length run, {ranks} stage(s), batch {', '.join(map(str, plan.bench_batches))}")
    fresh = target.with_name("unfinished.json")
    arguments = ["--model", setting.model, "--threads", threads, *DEVICE,
                 "--repeat", plan.bench_repeat, "--json", fresh,
                 "--batch", ",".join(map(str, plan.bench_batches)),
                 "--prompt-tokens", plan.bench_tokens, "--generate-tokens", plan.bench_tokens]
    command, environment = command_of(setting.program, ranks, "bench", arguments)
    processors = Processors()
    with open(target.with_name("log"), "ab") as log:
        code = setting.child.run(command, setting.lock, env=environment, stdout=log, stderr=log)
    if code != 0:
        raise RunError(f"headrace bench ended with exit code {code}; see {target.with_name('log')}")
    report = json.loads(fresh.read_text())
    report["model"] = setting.model.name
    report["machine"] = manifest.machine()
    report["others_cpu_share"] = processors.share_of_others()
    write_whole(target, json.dumps(report, indent=1) + "\n")
    fresh.unlink()
