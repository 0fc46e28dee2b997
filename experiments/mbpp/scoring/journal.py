"""Verdicts that are already there, so that a stopped scoring goes on and equal texts are run once.

One line a verdict, appended as soon as it is known. A verdict is found again under a key that holds
everything it depends on; a torn last line, of a run that was killed, is skipped.
"""
import fcntl
import hashlib
import json
import os
import pathlib


class Busy(Exception):
    pass


def key(settings, task_id, text):
    """settings: what verdicts depend on beside task and text, as a JSON value."""
    whole = json.dumps([settings, task_id, text], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class Journal:
    """Held by one process at a time: raises Busy while another has it."""

    def __init__(self, path):
        self._file = open(pathlib.Path(path), "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Busy(f"{path}: another scoring is at work with it; wait for it, or give another "
                       "--work") from None
        self.verdicts = self._read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def add(self, name, verdict):
        self.verdicts[name] = verdict
        self._file.write((json.dumps({"key": name, "verdict": verdict}) + "\n").encode())
        self._file.flush()

    def _read(self):
        self._file.seek(0)
        data = self._file.read()
        if data and not data.endswith(b"\n"):
            self._file.seek(0, os.SEEK_END)
            self._file.write(b"\n")
        found = {}
        for line in data.split(b"\n"):
            try:
                record = json.loads(line)
                found[record["key"]] = record["verdict"]
            except (ValueError, KeyError, TypeError):
                continue
        return found
