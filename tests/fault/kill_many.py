"""Many random kills, for kill_many.sh: KILLS and SEED from the environment, figures at the end."""
import collections
import contextlib
import os
import random
import signal
import subprocess
import time

import harness
import kill_test

KILLS = int(os.environ.get("KILLS", "200"))
PATIENCE = 60  # seconds until a rank has started
SEED = int(os.environ.get("SEED", "1"))


class KillMany(kill_test.Killing):
    def setUp(self):
        super().setUp()
        self.rng = random.Random(SEED)
        self.counts = collections.Counter()
        self.output = self.folder / "killed.jsonl"

    def undisturbed_seconds(self):
        """Of each number of ranks: from the start to the end."""
        seconds = {}
        for ranks in (2, 3):
            begin = time.monotonic()
            output = self.folder / f"timed{ranks}.jsonl"
            job = self.start_run(output, ranks)
            self.assertEqual(job.wait(120), harness.SOME_FAILED, job.log())
            seconds[ranks] = time.monotonic() - begin
            self.assert_same_results(self.expected(), harness.read_results(output), f"{ranks} ranks")
        return seconds

    def victim_process(self, job, victim):
        """None where a rank has not started yet, or is over."""
        if victim == "mpirun":
            return job.process.pid
        try:
            return job.rank_process(victim, limit=0.05)
        except AssertionError:
            return None

    def strike(self, job, victim, moment):
        """Kills the victim at that moment, in seconds after the start. False if the job was over."""
        try:
            job.process.wait(moment)
            return False
        except subprocess.TimeoutExpired:
            pass
        deadline = time.monotonic() + PATIENCE
        while job.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"no {victim} to kill after {PATIENCE} s:\n{job.log()}")
            process = self.victim_process(job, victim)
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    return True
        return False

    def lines(self):
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def one_start(self, seconds):
        """True if this start reached the end."""
        ranks = self.rng.choice((2, 3))
        victim = self.rng.choice((*range(ranks), "mpirun"))
        moment = self.rng.uniform(0, seconds[ranks])
        before = self.lines()
        job = self.start_run(self.output, ranks)
        struck = self.strike(job, victim, moment)
        code = job.wait(60)
        job.await_no_process()
        self.counts["starts"] += 1
        if code == harness.SOME_FAILED:
            return True
        self.assertTrue(struck, f"ended with {code} by itself\n{job.log()}")
        self.counts["kills"] += 1
        self.counts[f"of {'mpirun' if victim == 'mpirun' else f'rank {victim}'}"] += 1
        self.counts["with results"] += self.lines() > before
        return False

    def forget_results(self):
        for path in self.folder.glob("killed.jsonl*"):
            path.unlink()

    def test_random_kills(self):
        begin = time.monotonic()
        seconds = self.undisturbed_seconds()
        while self.counts["kills"] < KILLS:
            while not self.one_start(seconds):
                pass
            self.counts["runs"] += 1
            note = f"seed {SEED}, run {self.counts['runs']}"
            self.assert_same_results(self.expected(), harness.read_results(self.output), note)
            self.assertEqual(["killed.jsonl", "killed.jsonl.manifest.json"],
                             sorted(path.name for path in self.folder.glob("killed.jsonl*")))
            self.forget_results()
            print(f"{note}: equal after {self.counts['kills']} kills in all", flush=True)
        self.say(time.monotonic() - begin, seconds)

    def say(self, total, seconds):
        counts = self.counts
        victims = ", ".join(f"{counts[key]} {key}" for key in sorted(counts) if key.startswith("of "))
        for line in (f"kills: {counts['kills']} ({victims}), {counts['with results']} after results of that start",
                     f"resumes: {counts['starts'] - counts['runs']}",
                     f"finished runs: {counts['runs']}, each with all {len(self.expected())} results once, and equal",
                     f"seconds: {total:.0f}; an undisturbed run takes {seconds[2]:.1f} on 2 ranks, {seconds[3]:.1f} on 3"):
            print(line, flush=True)


if __name__ == "__main__":
    harness.main()
