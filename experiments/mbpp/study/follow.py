"""When results come: headrace's records have no times, so its results file is watched."""
import json
import threading
import time

POLL = 0.02  # seconds


class Follower:
    """Notes, for each line that is appended to a results file, when it was seen first."""

    def __init__(self, path):
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""
        self._end = threading.Event()
        self.seen = []  # (custom_id, time.monotonic())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        while not self._end.wait(POLL):
            self._read()

    def _read(self):
        if not self._path.exists():
            return
        # A resume first cuts off a line that was torn.
        self._offset = min(self._offset, self._path.stat().st_size)
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            fresh = file.read()
        if not fresh:
            return
        now = time.monotonic()
        self._offset += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        for line in lines:
            try:
                self.seen.append((json.loads(line)["custom_id"], now))
            except (ValueError, KeyError):
                continue  # the end of a line that was torn; the resumed run writes it again

    def close(self):
        """Reads what is left; call it when the program is over."""
        self._end.set()
        self._thread.join()
        self._read()


def finish_times(seen, generation_s):
    """Seconds from the beginning of the generation to each result. Its end, which the program does
    not date, is taken to be the last result."""
    if not seen:
        return {}
    start = seen[-1][1] - generation_s
    return {name: round(moment - start, 3) for name, moment in seen}


def latencies(order, finished, batch):
    """Seconds that each request was in flight.

    order: custom_ids as they stood in the input, which is the order in which they were taken in.
    finished: when each ended. With `batch` slots the first `batch` begin at once, every other one
    when a slot comes free: the nth (from 0) after n - batch + 1 have ended.
    """
    ends = sorted(finished.values())
    starts = [0.0] * min(batch, len(order)) + ends[:max(0, len(order) - batch)]
    return {name: finished[name] - start for name, start in zip(order, starts)}
