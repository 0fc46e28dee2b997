"""headrace clean: what it removes, what it leaves, and what it says."""
import fcntl
import os
import unittest

import harness

IO = 74
NAME = "0123456789abcdef-0-2-fedcba9876543210.offload"


class Clean(harness.ProgramTest):
    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk"
        self.disk.mkdir()

    def put(self, name, size=8192):
        path = self.disk / name
        path.write_bytes(b"x" * size)
        return path

    def clean(self, *arguments, expect=harness.DONE):
        return self.run_program("clean", "--disk", self.disk, *arguments, expect=expect)

    def left(self):
        return sorted(path.name for path in self.disk.iterdir())

    def test_removes_what_is_ours_and_says_how_much(self):
        for name in (NAME, NAME + ".building", "headrace-a1B2c3.temporary"):
            self.put(name)
        self.put(NAME + ".lock", 0)
        foreign = ["my.offload", "notes.txt", NAME + ".old", "headrace.temporary"]
        for name in foreign:
            self.put(name)
        (self.disk / ("1" + NAME[1:])).mkdir()
        text = self.clean("--dry-run").stdout()
        self.assertIn("24.0 KiB would be freed", text)
        self.assertEqual(text.count("would remove"), 4)
        self.assertEqual(len(self.left()), 9)
        text = self.clean().stdout()
        self.assertIn(f"{self.disk / NAME} (damaged, or of another version)", text)
        self.assertIn("24.0 KiB freed", text)
        self.assertEqual(self.left(), sorted([*foreign, "1" + NAME[1:]]))
        self.assertIn("nothing to remove", self.clean().stdout())

    def test_leaves_what_a_running_process_uses(self):
        used = self.put(NAME)
        lock = self.put("1" + NAME[1:] + ".lock", 0)
        self.put("1" + NAME[1:] + ".building")
        free = self.put("2" + NAME[1:])
        with open(used) as reader, open(lock, "r+") as builder:
            fcntl.flock(reader, fcntl.LOCK_SH)
            fcntl.flock(builder, fcntl.LOCK_EX)
            text = self.clean().stdout()
        self.assertIn("1 file, 8.0 KiB freed; 3 files in use by running processes", text)
        self.assertIn("being built", text)
        self.assertFalse(free.exists())
        self.assertEqual(len(self.left()), 3)
        self.clean()
        self.assertEqual(self.left(), [])

    def test_default_directory(self):
        cache = self.folder / "cache"
        before = {name: os.environ.get(name) for name in ("XDG_CACHE_HOME", "HOME")}

        def restore():
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        self.addCleanup(restore)
        for variables, directory in (({"XDG_CACHE_HOME": str(cache)}, cache / "headrace/offload"),
                                     ({"HOME": str(self.folder), "XDG_CACHE_HOME": "not/absolute"},
                                      self.folder / ".cache/headrace/offload")):
            with self.subTest(**variables):
                os.environ.update(variables)
                text = self.run_program("clean").stdout()
                self.assertEqual(text, f"nothing to remove: there is no {directory}\n")
                directory.mkdir(parents=True)
                (directory / NAME).write_bytes(b"x")
                self.assertIn(f"{directory / NAME}", self.run_program("clean").stdout())
                self.assertEqual(list(directory.iterdir()), [])

    def test_no_such_directory(self):
        path = self.folder / "missing"
        job = self.run_program("clean", "--disk", path, expect=harness.USAGE)
        self.assertIn(f"--disk {path} is not a directory", job.log())
        file = self.put("file")
        self.run_program("clean", "--disk", file, expect=harness.USAGE)

    def test_what_cannot_be_removed_is_named(self):
        if os.geteuid() == 0 and os.system(f"chattr +i {self.disk} 2>/dev/null") != 0:
            raise unittest.SkipTest("as root, without chattr, everything can be removed")
        path = self.put(NAME) if os.geteuid() != 0 else None
        if path is None:
            os.system(f"chattr -i {self.disk}")
            path = self.put(NAME)
            os.system(f"chattr +i {self.disk}")
            self.addCleanup(os.system, f"chattr -i {self.disk}")
        else:
            self.disk.chmod(0o500)
            self.addCleanup(self.disk.chmod, 0o700)
        job = self.clean(expect=IO)
        self.assertIn(f"{path} cannot be removed", job.log())
        self.assertTrue(path.exists())


if __name__ == "__main__":
    harness.main()
