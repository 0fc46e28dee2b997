"""Starts headrace as a user would, alone or under mpirun, and compares what comes out.

Every start has a time limit; on expiry the whole session (mpirun, its ranks) is killed and the test
fails with what the program said. Environment: HEADRACE, the program; HEADRACE_MODELS, a folder with
the real models; HEADRACE_SHARED, a folder with golden/.
"""
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
TINY = DATA / "models"
MPIRUN_SH = DATA.parents[1] / "launch" / "mpirun.sh"
SMOL = "SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"

DONE, SOME_FAILED, USAGE, DOES_NOT_FIT, IO, TRY_AGAIN = 0, 1, 2, 73, 74, 75


def program():
    return os.environ["HEADRACE"]


def real_model(name):
    """The path of a real model; skips the test where it is not there."""
    return _present("HEADRACE_MODELS", name)


def shared_file(name):
    """The path of a file beside the repository; skips the test where it is not there."""
    return _present("HEADRACE_SHARED", name)


def golden(name):
    return json.loads(shared_file(f"golden/{name}").read_text())


def _present(variable, name):
    folder = os.environ.get(variable)
    if not folder:
        raise unittest.SkipTest(f"{name}: {variable} is not set")
    path = pathlib.Path(folder) / name
    if not path.exists():
        raise unittest.SkipTest(f"{path} is not there")
    return path


def targets():
    """The vector targets of this CPU, fastest first."""
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return ["avx512"] * (" avx512bw" in flags) + ["avx2", "scalar"]


def for_cpu(arguments):
    """On a machine with a GPU, a run that says nothing of it is for the CPU."""
    if "HEADRACE_FAKE_GPUS" in os.environ:
        return arguments
    runs = arguments[:1] and str(arguments[0]) in ("generate", "bench", "plan")
    if not runs or "--device" in arguments or not pathlib.Path("/dev/nvidiactl").exists():
        return arguments
    return [*arguments, "--device", "cpu"]


def processes_of(session):
    """Ids of the processes of a session that are not zombies."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def line_count(path):
    """Of a results file, which a run makes and removes at its start, to see that it can be written."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


class Job:
    """One start of the program. Standard error goes to a file, so nothing waits for a reader.

    ranks: how many under mpirun, or a list of what each rank gets as further arguments. prefix: a
    command that runs the program with some limit, or one for each rank. script: start that many
    ranks by launch/mpirun.sh.
    """
    begun = []

    def __init__(self, arguments, ranks=None, stdin=subprocess.DEVNULL, folder=None, prefix=(), script=False):
        self.ranks = ranks
        self.folder = pathlib.Path(folder or tempfile.gettempdir())
        arguments = for_cpu(arguments)
        command = [*prefix, program(), *map(str, arguments)]
        if script:
            command = [str(MPIRUN_SH), "-np", str(ranks), *map(str, arguments)]
        elif ranks is not None:
            each = ranks if isinstance(ranks, list) else None
            command = ["mpirun", "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle",
                       "1", "-np", "1" if each else str(ranks)]
            for rank, more in enumerate(each or [()]):
                command += [":", "-np", "1"] * (rank > 0)
                command += prefix[rank] if prefix and not isinstance(prefix[0], str) else prefix
                command += [program(), *map(str, arguments), *map(str, more)]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           HEADRACE=program(), TMPDIR=str(self.folder))
        handle, self._log = tempfile.mkstemp(prefix="log.", dir=self.folder)
        out, self._out = tempfile.mkstemp(prefix="out.", dir=self.folder)
        self.process = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=handle,
                                        env=environment, start_new_session=True)
        Job.begun.append(self)
        os.close(handle)
        os.close(out)

    def log(self):
        return pathlib.Path(self._log).read_text(errors="replace")

    def stdout(self):
        return pathlib.Path(self._out).read_bytes().decode()

    def wait(self, limit=60):
        """The exit code. A job that is not over in time is killed and fails the test."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not over after {limit} s: {self.process.args}\n{self.log()}")

    def await_no_process(self, limit=15):
        """Waits until nothing of the job is left, which may be a moment after mpirun's own end."""
        end = time.monotonic() + limit
        while processes_of(self.process.pid):
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"processes are left\n{self.log()}")
            time.sleep(0.02)

    def kill(self):
        """Ends what still runs; first as one asks, so that mpirun can tidy up."""
        if self.process.poll() is None and self.ranks is not None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                pass
        for process in processes_of(self.process.pid):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def rank_process(self, rank, limit=20):
        """The process id of a rank. Under mpirun only."""
        marker = f"OMPI_COMM_WORLD_RANK={rank}".encode()
        end = time.monotonic() + limit
        while time.monotonic() < end:
            for process in processes_of(self.process.pid):
                try:
                    environment = pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if marker in environment:
                    return process
            time.sleep(0.02)
        raise AssertionError(f"no process of rank {rank}\n{self.log()}")

    def await_log(self, text, times=1, limit=30):
        """Waits until the program has said something so often."""
        self.await_true(lambda: self.log().count(text) >= times, f"{times} x {text!r}", limit)

    def await_lines(self, path, lines, limit=30):
        """Waits until a results file has so many lines."""
        self.await_true(lambda: line_count(path) >= lines, f"{lines} results", limit)

    def await_true(self, condition, what, limit):
        end = time.monotonic() + limit
        while not condition():
            if self.process.poll() is not None and not condition():
                raise AssertionError(f"ended ({self.process.returncode}) before {what}\n{self.log()}")
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"no {what} within {limit} s\n{self.log()}")
            time.sleep(0.01)


def float_bits(value):
    return struct.pack("<f", value).hex()


def bits(value):
    """A JSON value with its floats as float32 bits."""
    if isinstance(value, float):
        return float_bits(value)
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return value


def read_results(path):
    """Records by custom_id; each must be there once. Whatever may differ between equal runs is cut."""
    records = {}
    text = pathlib.Path(path).read_text()
    if text and not text.endswith("\n"):
        raise AssertionError(f"{path} ends with a torn line")
    for line in text.splitlines():
        record = json.loads(line)
        if record["custom_id"] in records:
            raise AssertionError(f"{path}: two results for {record['custom_id']}")
        record["response"]["body"].pop("created", None)
        records[record["custom_id"]] = record
    return records


def choices(record):
    return record["response"]["body"]["choices"]


def token_ids(record, choice=0):
    return choices(record)[choice]["token_ids"]


def write_requests(path, requests):
    pathlib.Path(path).write_text("".join(json.dumps(request) + "\n" for request in requests))


def end_with_all_jobs(*_):
    for job in Job.begun:
        job.kill()
    os._exit(128 + signal.SIGTERM)


class ProgramTest(unittest.TestCase):
    """A test with a scratch folder that is also its jobs' TMPDIR."""
    maxDiff = 2000

    def setUp(self):
        # Short: Open MPI puts sockets below it, whose paths are limited to 108 characters.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="hr."))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.jobs = []
        self.addCleanup(lambda: [job.kill() for job in self.jobs])

    def start(self, *arguments, ranks=None, stdin=subprocess.DEVNULL, prefix=(), script=False):
        job = Job(arguments, ranks, stdin, self.folder, prefix, script)
        self.jobs.append(job)
        return job

    def run_program(self, *arguments, ranks=None, expect=DONE, limit=60, prefix=()):
        job = self.start(*arguments, ranks=ranks, prefix=prefix)
        code = job.wait(limit)
        if expect is not None and code != expect:
            self.fail(f"exit code {code}, not {expect}: {job.process.args}\n{job.log()}")
        return job

    def small_disk(self, path, size, options=""):
        """Mounts a file system of this size on a directory, which is made where it is not there."""
        path.mkdir(exist_ok=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", path],
                                 capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            raise unittest.SkipTest(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", path], check=True)

    def generate(self, model, requests, *arguments, ranks=None, expect=DONE, limit=60, output=None, prefix=()):
        """Runs a batch to its end and gives the records by custom_id."""
        path = output or self.folder / f"out{len(self.jobs)}.jsonl"
        batch = self.folder / f"in{len(self.jobs)}.jsonl"
        write_requests(batch, requests)
        self.run_program("generate", "--model", model, "--input", batch, "--output", path,
                         "--token-ids", *arguments, ranks=ranks, expect=expect, limit=limit,
                         prefix=prefix)
        return read_results(path)

    def assert_same_results(self, expected, actual, note=""):
        self.assertEqual(sorted(expected), sorted(actual), f"{note}: not the same requests")
        for name, record in expected.items():
            if bits(record) == bits(actual[name]):
                continue
            self.fail(f"{note}: {name} differs\n{json.dumps(record)[:1500]}\n"
                      f"{json.dumps(actual[name])[:1500]}")

    def assert_resumes(self, arguments, output, expected, ranks=None, prefix=()):
        """A run that was cut short has some results; with --resume they stay, and the rest comes."""
        kept = read_results(output)
        self.assertGreater(len(kept), 0)
        self.assertLess(len(kept), len(expected))
        self.run_program(*arguments, "--resume", ranks=ranks, limit=90, prefix=prefix)
        results = read_results(output)
        self.assert_same_results(expected, results)
        self.assert_same_results(kept, {name: results[name] for name in kept})


def main():
    """unittest's main; exit code 77 (CTest: skipped) if every test was skipped. Who ends it ends its jobs."""
    signal.signal(signal.SIGTERM, end_with_all_jobs)
    result = unittest.main(module="__main__", exit=False, verbosity=2).result
    for test, reason in result.skipped:
        print(f"skipped: {test.id()}: {reason}")
    if not result.wasSuccessful():
        raise SystemExit(1)
    if result.testsRun == 0 or len(result.skipped) >= result.testsRun:
        raise SystemExit(77)
