"""Memory cgroups for tests: a limit that counts page cache, and the most that was used.

Version 1 of the kernel's interface is tried first, then version 2. Needs a cgroup file system that
this process may write to, as a rule root's.
"""
import contextlib
import os
import pathlib
import time
import unittest


class Cgroup:
    def __init__(self, path, limit, version):
        self.path, self.limit, self.version = path, limit, version
        path.mkdir()
        try:
            if version == 1:
                self._write("memory.limit_in_bytes", limit)
                with contextlib.suppress(OSError):  # only where swap is accounted
                    # A little more: an equal limit is asked first and does not count its failures.
                    self._write("memory.memsw.limit_in_bytes", limit + (1 << 20))
            else:
                self._write("memory.max", limit)
                with contextlib.suppress(OSError):
                    self._write("memory.swap.max", 0)
                if not (path / "memory.peak").exists():
                    raise OSError(f"{path} has no memory.peak; Linux 5.19 is needed")
        except OSError:
            path.rmdir()
            raise

    def prefix(self):
        """A command that runs what follows in the group."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs; exec "$@"', "sh"]

    def peak(self):
        return self._number("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")

    def failures(self):
        """How often the limit was reached; the kernel then drops pages of files."""
        return self._number("memory.failcnt") if self.version == 1 else self._key("memory.events", "max")

    def killed(self):
        return self._key("memory.oom_control" if self.version == 1 else "memory.events", "oom_kill")

    def remove(self):
        for _ in range(500):  # its processes may be about to end
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.01)

    def _write(self, name, value):
        (self.path / name).write_text(str(value))

    def _number(self, name):
        return int((self.path / name).read_text())

    def _key(self, name, key):
        for line in (self.path / name).read_text().splitlines():
            if line.split()[0] == key:
                return int(line.split()[1])
        raise AssertionError(f"{self.path / name} has no {key}")


def lacks(version, root):
    """Why no memory group of this version can be made below root; empty if nothing is known."""
    if version == 1:
        return "" if (root / "memory.usage_in_bytes").exists() else f"{root} has no memory controller of version 1"
    if not (root / "cgroup.controllers").exists():
        return f"{root} is not a cgroup file system of version 2"
    # Groups get the controllers that their parent hands down, and a parent with processes of its
    # own, as in most containers, may hand down none.
    if "memory" not in (root / "cgroup.subtree_control").read_text().split():
        return f"{root}/cgroup.subtree_control does not hand down the memory controller"
    return ""


def make(name, limit):
    """A group; skips the test where none can be made."""
    reasons = []
    for version, folder in ((1, "/sys/fs/cgroup/memory"), (2, "/sys/fs/cgroup")):
        root = pathlib.Path(folder)
        reason = lacks(version, root)
        if not reason:
            try:
                return Cgroup(root / f"headrace-test-{os.getpid()}-{name}", limit, version)
            except OSError as error:
                reason = str(error)
        reasons.append(reason)
    raise unittest.SkipTest("no memory cgroup can be made: " + "; ".join(reasons))
