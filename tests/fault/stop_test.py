"""No silent hang (promise 5): stopped ranks, interrupts, slow input.

Under Open MPI's mpirun a run that lost a rank ends with the 75 its ranks gave. A SIGINT or SIGTERM to
mpirun is another matter: it passes on a signal, gives the ranks about a second and then ends them,
with an exit code of its own that is not 0. The results written by then are whole; --resume goes on.
launch/mpirun.sh makes 75 of all that.
"""
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import time

import harness

MODEL = "synthetic:tiny-opt"
RANKS = 3
TIMEOUT = 3  # --peer-timeout
MARGIN = 10  # for the ranks' last words and mpirun's clearing up, on a busy machine


def requests(count=300):
    rng = random.Random(6)
    return [{"custom_id": f"r{i}", "prompt": [rng.randrange(3, 320) for _ in range(rng.randint(1, 50))],
             "max_tokens": rng.randint(5, 80), "logprobs": 1, "temperature": rng.choice((0, 0.8)), "seed": i}
            for i in range(count)]


class Stop(harness.ProgramTest):
    undisturbed = None

    def setUp(self):
        super().setUp()
        self.input, self.output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        harness.write_requests(self.input, requests())

    def options(self, *arguments):
        timeout = [] if "--peer-timeout" in arguments else ["--peer-timeout", TIMEOUT]
        return ["generate", "--model", MODEL, "--max-batch", 3, "--threads", 1, "--token-ids",
                "--output", self.output, *timeout, *arguments]

    def expected(self):
        if Stop.undisturbed is None:
            Stop.undisturbed = self.generate(MODEL, requests(), "--max-batch", 8, "--threads", 1)
        return Stop.undisturbed

    def resume_and_compare(self, ranks):
        """What was written is whole, and --resume gives what an undisturbed run gives."""
        written = harness.read_results(self.output)
        self.assertTrue(0 < len(written) < len(requests()), f"{len(written)} results before the end")
        self.run_program(*self.options("--input", self.input, "--resume"), ranks=ranks)
        expected = self.expected()
        self.assert_same_results({name: expected[name] for name in written}, written, "written before")
        self.assert_same_results(expected, harness.read_results(self.output), "resumed")

    # ---- stopped ranks ----

    def check_stopped(self, rank):
        job = self.start(*self.options("--input", self.input), ranks=RANKS)
        job.await_lines(self.output, 20)
        os.kill(job.rank_process(rank), signal.SIGSTOP)
        begin = time.monotonic()
        code = job.wait(TIMEOUT + 2 * MARGIN)
        seconds = time.monotonic() - begin
        log = job.log()
        self.assertEqual(code, harness.TRY_AGAIN, log)
        self.assertLess(seconds, TIMEOUT + MARGIN)
        self.assertGreater(seconds, TIMEOUT * 0.7, "given up too early")
        self.assertIn(f"rank {rank} (host {socket.gethostname()}) gave no sign of life", log)
        for other in set(range(RANKS)) - {rank}:
            self.assertNotIn(f"rank {other} (host", log)
        job.await_no_process()
        print(f"rank {rank} stopped: over after {seconds:.1f} s", flush=True)
        self.resume_and_compare(RANKS)

    def test_rank_0(self):
        self.check_stopped(0)

    def test_middle_rank(self):
        self.check_stopped(1)

    def test_last_rank(self):
        self.check_stopped(RANKS - 1)

    def test_continued_in_time(self):
        job = self.start(*self.options("--input", self.input), ranks=RANKS)
        job.await_lines(self.output, 10)
        for rank in range(RANKS):
            process = job.rank_process(rank)
            os.kill(process, signal.SIGSTOP)
            time.sleep(TIMEOUT * 0.5)
            os.kill(process, signal.SIGCONT)
            time.sleep(0.3)
        self.assertEqual(job.wait(), harness.DONE, job.log())
        self.assert_same_results(self.expected(), harness.read_results(self.output))

    # ---- a problem that only one rank has ----

    def test_what_one_rank_finds_is_said_before_the_others_miss_it(self):
        """The rank leaves rank 0 the first word, but for less long than the others wait for it."""
        for timeout in (4, 20):
            with self.subTest(timeout=timeout):
                begin = time.monotonic()
                job = self.start(*self.options("--input", self.input, "--peer-timeout", timeout),
                                 ranks=[[], ["--host-memory", "64KiB", "--disk-budget", 0]])
                code = job.wait(30)
                seconds = time.monotonic() - begin
                self.assertEqual(code, harness.DOES_NOT_FIT, job.log())
                self.assertIn("--host-memory", job.log())
                self.assertNotIn("gave no sign of life", job.log())
                print(f"--peer-timeout {timeout}: over after {seconds:.1f} s", flush=True)
                job.await_no_process()

    # ---- slow input ----

    def check_slow_input(self, ranks):
        """Input that pauses for longer than the timeout, also before the first line. What has come is
        worked off meanwhile."""
        job = self.start(*self.options("--input", "-"), ranks=ranks, stdin=subprocess.PIPE)
        lines, sent = self.input.read_bytes().splitlines(keepends=True), 0
        for part in (lines[:20], lines[20:21], lines[21:]):
            time.sleep(TIMEOUT * 1.5)
            job.process.stdin.write(b"".join(part))
            job.process.stdin.flush()
            sent += len(part)
            if sent < len(lines):
                job.await_lines(self.output, sent, TIMEOUT)
        job.process.stdin.close()
        self.assertEqual(job.wait(), harness.DONE, job.log())
        self.assert_same_results(self.expected(), harness.read_results(self.output))

    def test_slow_input_alone(self):
        self.check_slow_input(None)

    def test_slow_input_over_ranks(self):
        self.check_slow_input(RANKS)

    def test_interrupt_while_waiting_for_input(self):
        job = self.start(*self.options("--input", "-"), stdin=subprocess.PIPE)
        job.process.stdin.write(self.input.read_bytes().partition(b"\n")[0] + b"\n")
        job.process.stdin.flush()
        job.await_lines(self.output, 1)
        job.process.send_signal(signal.SIGTERM)
        self.assertEqual(job.wait(2), harness.TRY_AGAIN, job.log())
        job.process.stdin.close()
        self.resume_and_compare(None)

    # ---- interrupts ----

    def check_interrupt(self, number, ranks):
        job = self.start(*self.options("--input", self.input), ranks=ranks)
        job.await_lines(self.output, 10)
        job.process.send_signal(number)
        code = job.wait(MARGIN)
        if ranks is None:
            self.assertEqual(code, harness.TRY_AGAIN, job.log())
            self.assertIn("--resume", job.log())
        else:
            self.assertNotEqual(code, harness.DONE, job.log())
            print(f"mpirun's exit code after signal {number}: {code}", flush=True)
        job.await_no_process()
        self.resume_and_compare(ranks)

    def test_sigint(self):
        self.check_interrupt(signal.SIGINT, None)

    def test_sigterm(self):
        self.check_interrupt(signal.SIGTERM, None)

    def test_sigint_to_mpirun(self):
        self.check_interrupt(signal.SIGINT, RANKS)

    def test_sigterm_to_mpirun(self):
        self.check_interrupt(signal.SIGTERM, RANKS)

    def test_sigusr1_to_mpirun(self):
        """mpirun passes it on, and the ranks end by themselves."""
        job = self.start(*self.options("--input", self.input), ranks=RANKS)
        job.await_lines(self.output, 10)
        job.process.send_signal(signal.SIGUSR1)
        self.assertEqual(job.wait(MARGIN), harness.TRY_AGAIN, job.log())
        self.assertIn("run again with --resume", job.log())
        job.await_no_process()
        self.resume_and_compare(RANKS)

    def test_sigterm_to_rank_0(self):
        job = self.start(*self.options("--input", self.input), ranks=RANKS)
        job.await_lines(self.output, 10)
        os.kill(job.rank_process(0), signal.SIGTERM)
        self.assertEqual(job.wait(MARGIN), harness.TRY_AGAIN, job.log())
        self.resume_and_compare(RANKS)

    def test_sigterm_to_another_rank(self):
        """It ends the run as one to rank 0 does. The input stays open, so that nothing else can."""
        for rank in (1, RANKS - 1):
            self.output.unlink(missing_ok=True)
            job = self.start(*self.options("--input", "-"), ranks=RANKS, stdin=subprocess.PIPE)
            job.process.stdin.write(b"".join(self.input.read_bytes().splitlines(keepends=True)[:20]))
            job.process.stdin.flush()
            job.await_lines(self.output, 10)
            os.kill(job.rank_process(rank), signal.SIGTERM)
            self.assertEqual(job.wait(MARGIN), harness.TRY_AGAIN, job.log())
            self.assertIn("run again with --resume", job.log())
            job.process.stdin.close()
            job.await_no_process()
            self.resume_and_compare(RANKS)

    def test_interrupt_while_the_offload_file_is_built(self):
        disk = self.folder / "disk"
        if shutil.disk_usage(self.folder).free < 4 << 30:
            self.skipTest("less than 4 GiB free")
        options = ["generate", "--model", "synthetic:qwen2.5-1.5b:q8", "--threads", 1, "--host-memory", "300MiB",
                   "--disk", disk, "--input", self.input, "--output", self.output]
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                job = self.start(*options, "--peer-timeout", 2, ranks=ranks)
                job.await_log("building the offload file")
                if ranks:
                    os.kill(job.rank_process(1), signal.SIGTERM)
                else:
                    job.process.send_signal(signal.SIGTERM)
                self.assertEqual(job.wait(MARGIN), harness.TRY_AGAIN, job.log())
                self.assertIn("interrupted before the first step; run the same command again", job.log())
                job.await_no_process()
                self.assertEqual([], [path for path in disk.iterdir() if path.suffix != ".offload"])

    # ---- launch/mpirun.sh ----

    def start_script(self, *arguments, **options):
        return self.start(*self.options(*arguments), ranks=RANKS, script=True, **options)

    def check_script(self, interrupt):
        """However mpirun.sh is interrupted, the ranks end by themselves, and the code is theirs."""
        job = self.start_script("--input", self.input)
        job.await_lines(self.output, 10)
        interrupt(job.process.pid)
        self.assertEqual(job.wait(MARGIN), harness.TRY_AGAIN, job.log())
        self.assertIn("interrupted; what was finished is written, run again with --resume", job.log())
        job.await_no_process(0.5)  # nothing of it may hold what the script was given open
        self.resume_and_compare(RANKS)

    def test_script_sigterm(self):
        self.check_script(lambda process: os.kill(process, signal.SIGTERM))

    def test_script_sigint(self):
        self.check_script(lambda process: os.kill(process, signal.SIGINT))

    def test_script_sigterm_to_all(self):
        """As timeout(1) sends it: to the script, then to all of its group."""
        def strike(process):
            os.kill(process, signal.SIGTERM)
            os.killpg(process, signal.SIGTERM)
        for _ in range(3):
            self.check_script(strike)
            self.output.unlink()

    def test_script_that_is_killed(self):
        """As who waits for it no longer does; its ranks end, too."""
        job = self.start_script("--input", self.input)
        job.await_lines(self.output, 10)
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
        job.await_no_process()
        self.resume_and_compare(RANKS)

    def test_script_ctrl_c(self):
        """On a terminal, which sends a SIGINT to mpirun, too."""
        process, terminal = pty.fork()
        if process == 0:
            os.environ.update(HEADRACE=harness.program(), TMPDIR=str(self.folder))
            os.execv(harness.MPIRUN_SH, [str(harness.MPIRUN_SH), "-np", str(RANKS),
                                         *map(str, self.options("--input", self.input))])
        end = time.monotonic() + 30
        shown = b""
        os.set_blocking(terminal, False)
        sent = False
        while True:
            try:
                shown += os.read(terminal, 65536)
            except BlockingIOError:
                pass
            except OSError:  # the end
                break
            if not sent and harness.line_count(self.output) >= 10:
                os.write(terminal, b"\x03")
                sent = True
            if time.monotonic() > end:
                os.killpg(process, signal.SIGKILL)
                break
            time.sleep(0.01)
        _, status = os.waitpid(process, 0)
        os.close(terminal)
        self.assertTrue(sent, shown)
        self.assertEqual(harness.TRY_AGAIN, os.waitstatus_to_exitcode(status), shown)
        self.assertIn(b"what was finished is written", shown)
        self.resume_and_compare(RANKS)

    def test_script_interrupted_while_it_starts(self):
        """Whenever it comes, it is not lost."""
        for seconds in (0, 0.05, 0.1, 0.2, 0.4):
            with self.subTest(seconds=seconds):
                job = self.start_script("--input", self.input, "--resume")
                time.sleep(seconds)
                os.killpg(job.process.pid, signal.SIGTERM)
                begin = time.monotonic()
                code = job.wait(MARGIN)
                # Before the script can take it, the signal ends the script.
                self.assertIn(code, (harness.TRY_AGAIN, -signal.SIGTERM), job.log())
                self.assertLess(time.monotonic() - begin, MARGIN)
                job.await_no_process()

    def test_script_interrupted_twice(self):
        """A rank that does not end, for it is stopped: the second signal ends it."""
        job = self.start_script("--input", self.input, "--peer-timeout", 600)
        job.await_lines(self.output, 10)
        os.kill(job.rank_process(1), signal.SIGSTOP)
        os.kill(job.process.pid, signal.SIGTERM)
        job.await_log("Once more, after two seconds, ends them at once")
        time.sleep(3)
        self.assertIsNone(job.process.poll())
        os.kill(job.process.pid, signal.SIGTERM)
        self.assertEqual(job.wait(MARGIN), harness.TRY_AGAIN, job.log())
        job.await_no_process()
        self.resume_and_compare(RANKS)

    def test_script_loses_a_rank(self):
        """mpirun's own exit code is 137."""
        job = self.start_script("--input", self.input)
        job.await_lines(self.output, 10)
        os.kill(job.rank_process(1), signal.SIGKILL)
        self.assertEqual(job.wait(MARGIN), harness.TRY_AGAIN, job.log())
        self.assertRegex(job.log(), "exit code 137, which is not headrace's own.*--resume")
        job.await_no_process()
        self.resume_and_compare(RANKS)

    def test_script_reads_standard_input(self):
        job = self.start_script("--input", "-", stdin=subprocess.PIPE)
        job.process.stdin.write(self.input.read_bytes())
        job.process.stdin.close()
        self.assertEqual(job.wait(), harness.DONE, job.log())
        self.assert_same_results(self.expected(), harness.read_results(self.output))


if __name__ == "__main__":
    harness.main()
