"""Nothing lost, nothing twice (promise 4): kill -9 at random moments, then --resume.

The undisturbed run says what must come out. After each kill nothing of the job may be left: no
process, no shared memory, no temporary file, no lock (the next run starts at once).
"""
import os
import pathlib
import random
import signal

import harness

MODEL = "synthetic:tiny-opt"
RANKS = 3
ROUNDS = 2  # per victim


def requests():
    rng = random.Random(5)
    batch = []
    for i in range(400):
        batch.append({"custom_id": f"r{i}", "prompt": [rng.randrange(3, 320) for _ in range(rng.randint(1, 60))],
                      "max_tokens": rng.randint(2, 70), "logprobs": 1, "seed": i,
                      "temperature": rng.choice((0, 0.9)), "n": rng.choice((1, 1, 1, 2))})
    batch.insert(200, {"custom_id": "bad", "prompt": [1], "temperature": -1})
    return batch


def shared_memory(job_processes):
    """Files in /dev/shm that the processes have mapped."""
    found = set()
    for process in job_processes:
        try:
            maps = pathlib.Path(f"/proc/{process}/maps").read_text()
        except OSError:
            continue
        found |= {line.split(None, 5)[5] for line in maps.splitlines() if "/dev/shm/" in line}
    return found


class Killing(harness.ProgramTest):
    """Starts of one batch that are to be killed, and what must come of it in the end."""
    undisturbed = None

    def setUp(self):
        super().setUp()
        self.input = self.folder / "in.jsonl"
        harness.write_requests(self.input, requests())

    def start_run(self, output, ranks=RANKS):
        return self.start("generate", "--model", MODEL, "--input", self.input, "--output", output,
                          "--max-batch", 4, "--threads", 1, "--token-ids", "--resume", ranks=ranks)

    def expected(self):
        if Killing.undisturbed is None:
            output = self.folder / "undisturbed.jsonl"
            job = self.start_run(output)
            self.assertEqual(job.wait(), harness.SOME_FAILED, job.log())  # the bad line
            Killing.undisturbed = harness.read_results(output)
            self.assertEqual(len(Killing.undisturbed), len(requests()))
        return Killing.undisturbed


class Kill(Killing):
    def strike(self, job, victim, lines, output):
        """Kills the victim once the results have so many lines; what the job held in /dev/shm."""
        job.await_log("stage ", RANKS)
        target = job.process.pid if victim == "mpirun" else job.rank_process(victim)
        held = shared_memory(harness.processes_of(job.process.pid))
        if lines:
            job.await_lines(output, lines)
        os.kill(target, signal.SIGKILL)
        return held

    def check_nothing_left(self, job, held, before):
        job.await_no_process()
        self.assertFalse([path for path in held if os.path.exists(path)])
        left = {p.name for p in self.folder.iterdir()} - before
        left = [str(p) for name in left if not name.startswith(("log.", "out."))
                for p in (self.folder / name, *(self.folder / name).rglob("*"))]
        self.assertFalse(left)

    def check_victim(self, victim):
        expected = self.expected()
        rng = random.Random(str(victim))
        for round_number in range(ROUNDS):
            output = self.folder / "killed.jsonl"
            strikes = 0
            # Two strikes, the second into the resumed run; the first may be before any result.
            for low, high in ((0, 150), (160, 350)):
                before = {p.name for p in self.folder.iterdir()} | {"killed.jsonl", "killed.jsonl.manifest.json"}
                job = self.start_run(output)
                held = self.strike(job, victim, rng.randint(low, high), output)
                self.assertEqual(len(held), RANKS, f"shared memory of the job: {held}")
                code = job.wait(30)
                self.assertNotEqual(code, harness.DONE)
                self.check_nothing_left(job, held, before)
                strikes += output.read_bytes().count(b"\n") < len(expected)
            self.assertGreater(strikes, 0, "every kill came too late to disturb")
            job = self.start_run(output)
            self.assertEqual(job.wait(), harness.SOME_FAILED, job.log())
            self.assert_same_results(expected, harness.read_results(output), f"killed {victim}, round {round_number}")
            for path in self.folder.glob("killed.jsonl*"):
                path.unlink()

    def test_rank_0(self):
        self.check_victim(0)

    def test_middle_rank(self):
        self.check_victim(1)

    def test_last_rank(self):
        self.check_victim(RANKS - 1)

    def test_mpirun(self):
        self.check_victim("mpirun")


if __name__ == "__main__":
    harness.main()
