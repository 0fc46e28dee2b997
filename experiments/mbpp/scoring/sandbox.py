"""Starts one runner in a sandbox of its own (bubblewrap) and collects what it says.

The sandbox has its own user, process, network, IPC, host name, control group and mount namespaces.
It sees the system's /usr, the Python environment and this package, all read-only, and the files
named for the run; it can write to a /tmp of limited size. Its end, its time limit or the end of
this process ends every process in it. Only the standard library is needed on this side, and nothing
that a sandbox produced is executed or unpickled here.
"""
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PACKAGE = pathlib.Path(__file__).resolve().parent
LIMITS = {
    "memory_bytes": 4 << 30,  # address space of a process; EvalPlus's own figure
    "tmp_bytes": 64 << 20,    # /tmp, and a quarter of it for shared memory
    "file_bytes": 16 << 20,
    "open_files": 64,
    "processes": 1,           # of a candidate: it may start threads, not processes
    "cpu_seconds": 130,       # of a process
    "wall_seconds": 180,      # of a sandbox; EvalPlus gives up after 62 s for each of two suites
    "min_time_limit": 1.0,         # seconds a test; EvalPlus's default
    "gt_time_limit_factor": 4.0,   # times the reference's time; EvalPlus's default
}
REFERENCE_LIMITS = {"cpu_seconds": 1800, "wall_seconds": 3600, "file_bytes": 8 << 30}
INSIDE = {"task": "/task.pickle", "folder": "/references"}
MESSAGE_BYTES = 4 << 20
LOG_BYTES = 4000


@dataclasses.dataclass
class Outcome:
    """What a runner said, line by line, how it ended, and the end of its log."""
    messages: list
    ended: str
    log: str

    def last(self, key):
        """The last message, if it has this key; else None."""
        message = self.messages[-1] if self.messages else {}
        return message if key in message else None

    def last_line(self):
        """Of the log: of a traceback, the error."""
        return self.log.rpartition("\n")[2]


class Sandbox:
    """python: the interpreter of the environment with EvalPlus. confined: False runs it bare."""

    def __init__(self, limits=None, confined=True, python=sys.executable):
        self.limits = {**LIMITS, **(limits or {})}
        self.confined = confined
        self._python = os.path.abspath(python)

    def run(self, order, task=None, folder=None, limits=None):
        """Runs the order; task: a file for it to read; folder: one that it may write to."""
        limits = {**self.limits, **(limits or {})}
        seen = {name: INSIDE[name] if self.confined else str(path)
                for name, path in (("task", task), ("folder", folder)) if path}
        order = {**order, **seen, "limits": limits, "confined": self.confined}
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as log:
            stdin.write(json.dumps(order).encode())
            stdin.seek(0)
            environment = _environment(seen.get("folder"))
            command = [self._python, "-s", "-B", "-m", "scoring.runner", str(writer)]
            if self.confined:
                command = self._bubblewrap(limits, task, folder, environment) + command
            try:
                process = subprocess.Popen(
                    command, stdin=stdin, stdout=log, stderr=log, pass_fds=[writer],
                    env={} if self.confined else environment, start_new_session=True)
            except OSError:
                os.close(reader)
                raise
            finally:
                os.close(writer)
            said, ended = _collect(process, reader, limits["wall_seconds"])
            return Outcome(said, ended, _end_of(log))

    def _bubblewrap(self, limits, task, folder, environment):
        command = [shutil.which("bwrap") or "bwrap",
                   "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net",
                   "--unshare-uts", "--unshare-cgroup", "--uid", "65534", "--gid", "65534",
                   "--cap-drop", "ALL", "--hostname", "sandbox", "--die-with-parent",
                   "--new-session", "--clearenv"]
        for name, value in environment.items():
            command += ["--setenv", name, value]
        command += ["--ro-bind", "/usr", "/usr"]
        for name in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
            if os.path.islink(name):
                command += ["--symlink", os.readlink(name), name]
            elif os.path.isdir(name):
                command += ["--ro-bind", name, name]
        command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc",
                    "--dev", "/dev", "--size", str(limits["tmp_bytes"] // 4), "--tmpfs", "/dev/shm",
                    "--remount-ro", "/dev", "--size", str(limits["tmp_bytes"]), "--tmpfs", "/tmp"]
        for path in [*self._python_folders, PACKAGE]:
            command += ["--ro-bind", str(path), str(path)]
        if task:
            command += ["--ro-bind", str(task), INSIDE["task"]]
        if folder:
            command += ["--bind", str(folder), INSIDE["folder"]]
        return command + ["--remount-ro", "/", "--chdir", "/tmp", "--"]

    @functools.cached_property
    def _python_folders(self):
        """Where the interpreter and its packages lie, outside /usr."""
        show = "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"
        prefixes = subprocess.run([self._python, "-I", "-c", show], capture_output=True, text=True,
                                  check=True).stdout.split("\n")
        return sorted({path for path in prefixes if path and path != "/usr"})


def _environment(folder):
    # Order in sets of strings, and so some verdicts, would differ from run to run.
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PYTHONHASHSEED": "0",
                   "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if folder:
        environment.update(XDG_CACHE_HOME=folder, MBPP_OVERRIDE_PATH=f"{folder}/data.jsonl")
    return environment


def _collect(process, reader, wall_seconds):
    """The messages on the descriptor until it is closed or time is up; then nothing is left."""
    data, deadline, ended = b"", time.monotonic() + wall_seconds, None
    with os.fdopen(reader, "rb", buffering=0) as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(data) < MESSAGE_BYTES:
            if not selector.select(max(0, deadline - time.monotonic())):
                ended = f"stopped after {wall_seconds} s"
                break
            block = pipe.read(1 << 16)
            if not block:
                break
            data += block
    if ended is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    return _parse(data), ended or (f"exit code {code}" if code >= 0 else f"signal {-code}")


def _parse(data):
    """The whole lines; a torn or foreign one ends them."""
    messages = []
    for line in data.split(b"\n")[:-1]:
        try:
            message = json.loads(line)
        except ValueError:
            break
        if not isinstance(message, dict):
            break
        messages.append(message)
    return messages


def _end_of(log):
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
    return log.read().decode(errors="replace").strip()
