"""Runs programs under a memory limit and a read limit: control groups of version 1, as root.

The memory limit counts the page cache. The read limit holds for every process of the group
together, for reads that reach the disk, those with O_DIRECT included.
"""
import contextlib
import os
import pathlib
import signal
import subprocess

ROOT = pathlib.Path("/sys/fs/cgroup")


class CannotLimit(Exception):
    """This machine lacks what a limit takes; the text says what."""


def block_device(path):
    """major:minor of the whole disk that holds path."""
    device = os.stat(path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    entry = pathlib.Path("/sys/dev/block") / name
    if not entry.exists():
        raise CannotLimit(f"{path} is not on a block device ({name}); give --work on a disk")
    entry = entry.resolve()
    if (entry / "partition").exists():
        name = (entry.parent / "dev").read_text().strip()
    return name


def check(path):
    """Throws CannotLimit if Group would fail for files at path."""
    if os.geteuid() != 0:
        raise CannotLimit("not root, so no control group can be made")
    for knob in ("memory/memory.limit_in_bytes", "blkio/blkio.throttle.read_bps_device"):
        # The root group has no memory limit on some kernels, but always the controller's folder.
        if not (ROOT / knob).exists():
            raise CannotLimit(f"{ROOT / knob} does not exist; control groups of version 1 are needed")
    block_device(path)


class Group(contextlib.AbstractContextManager):
    """Limits for the processes that are started in it; gone, with what still runs in it, on exit."""

    _count = 0

    def __init__(self, directory, memory=None, read_bps=None):
        Group._count += 1
        name = f"headrace_perf_{os.getpid()}_{Group._count}"
        self._folders = []
        self._device = block_device(directory)
        try:
            if memory:
                self._make("memory", name, "memory.limit_in_bytes", str(memory))
            if read_bps:
                rule = f"{self._device} {int(read_bps)}"
                self._make("blkio", name, "blkio.throttle.read_bps_device", rule)
        except BaseException:
            self.close()
            raise

    def _make(self, controller, name, knob, value):
        folder = ROOT / controller / name
        folder.mkdir()
        self._folders.append(folder)
        (folder / knob).write_text(value)

    @property
    def tasks(self):
        """Files that a process writes its own number to in order to be limited."""
        return [str(folder / "cgroup.procs") for folder in self._folders]

    def enter(self):
        """Puts the calling process into the group; for preexec_fn."""
        for file in self.tasks:
            with open(file, "w") as f:
                f.write(str(os.getpid()))

    def _value(self, controller, knob):
        for folder in self._folders:
            if folder.parent.name == controller:
                return (folder / knob).read_text()
        return ""

    def peak_memory(self):
        return int(self._value("memory", "memory.max_usage_in_bytes") or 0)

    def bytes_read(self):
        for line in self._value("blkio", "blkio.throttle.io_service_bytes").splitlines():
            word = line.split()
            if word[:2] == [self._device, "Read"]:
                return int(word[2])
        return 0

    def close(self):
        for folder in self._folders:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                (folder / "memory.force_empty").write_text("0")
            for _ in range(100):  # a process that is ending keeps its group busy
                try:
                    folder.rmdir()
                    break
                except OSError:
                    signal.sigtimedwait([], 0.05)
        self._folders = []

    def __exit__(self, *_):
        self.close()


def drop_from_cache(path):
    """Pages of a file that are in the cache already would not be charged to a group."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command, group=None, env=None, timeout=1800):
    """Its output and errors; throws RuntimeError with both if it fails."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=env,
                               preexec_fn=group.enter if group else None)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise RuntimeError(f"{words}\nended with {process.returncode}:\n{out}{err}")
    return out, err
