"""The file of endpoint.py: a header, then a line for each request that came to an end.

A request that failed is tried again by the next session and then has another line; the last one
counts. `session` numbers the starts of endpoint.py, so that the time between two does not count.
"""
import fcntl
import json
import os

from study import data


def key_of(record):
    return record["task_id"], record["draw"]


def latest(records):
    """{(task_id, draw): record}, of the lines after the header."""
    return {key_of(record): record for record in records}


class Journal:
    """Open for writing; a line that was torn is cut off."""

    def __init__(self, path, header):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise data.DataError(f"{path} is in use by another run") from None
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)
        there = data.read_json_lines(path)
        if there and there[0] != header:
            raise data.DataError(f"{path} is of other requests: {there[0]} there, {header} here; "
                                 "name another --output")
        if not there:
            self.add(header)
        records = there[1:]
        self.done = {key for key, record in latest(records).items() if record["text"] is not None}
        self.session = 1 + max((record["session"] for record in records), default=0)

    def add(self, record):
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()
