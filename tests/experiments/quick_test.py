"""experiments/mbpp/reproduce.sh --quick from end to end, on a real model, killed and started again.

HEADRACE_STUDY_WORK: where the study works and has its Python environments; default: build/mbpp.
Where they are not there ("reproduce.sh --prepare"), they are made, which needs the network.
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

import harness

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STUDY = REPOSITORY / "experiments" / "mbpp"
WORK = pathlib.Path(os.environ.get("HEADRACE_STUDY_WORK") or REPOSITORY / "build" / "mbpp")
TASKS = 5
STOPPED = 75
sys.path.insert(0, str(STUDY))
from study import collect, data, plan, prompts


class Quick(harness.ProgramTest):
    def setUp(self):
        super().setUp()
        self.model = harness.real_model(harness.SMOL)
        # As if it had been downloaded before: tests do not ask the publisher.
        shared = harness.shared_file("data/mbpp/MbppPlus-v0.2.0.jsonl")
        (WORK / "data").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared, WORK / "data" / data.FILE)
        self.study = WORK / f"{self.model.stem.lower()}-quick-{TASKS}"
        for name in (self.study, f"{self.study}-check"):
            shutil.rmtree(name, ignore_errors=True)

    def command(self, *more):
        words = (STUDY / "reproduce.sh", "--quick", "--tasks", TASKS, "--work", WORK,
                 "--model", self.model, *more)
        return [str(word) for word in words]

    def reproduce(self, *more, expect=0):
        done = subprocess.run(self.command(*more), stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=1200)
        said = done.stdout + done.stderr
        self.assertEqual(expect, done.returncode, said)
        return said

    def end_in(self, run, number, expect):
        """Starts the study and ends it when it is in the middle of the run."""
        out = self.study / "runs" / run / "out.jsonl"
        with open(self.folder / "log", "w") as log:
            process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stderr=log)
            end = time.monotonic() + 900
            while harness.line_count(out) == 0:
                self.assertIsNone(process.poll(), (self.folder / "log").read_text())
                self.assertLess(time.monotonic(), end, f"no result of {run}")
                time.sleep(0.02)
            process.send_signal(number)
            self.assertEqual(expect, process.wait(120), (self.folder / "log").read_text())

    def undisturbed(self):
        """{request: output} of one run of the same requests, without the study around it."""
        tasks = data.read_tasks(WORK / "data" / data.FILE, TASKS)
        requests = [prompts.request(task, 0) for task in tasks]
        self.generate(self.model, requests, "--max-batch", 64, limit=300,
                      output=self.folder / "alone.jsonl")
        run = plan.Run("alone", "greedy", 64, 1, 2, TASKS)
        return dict(collect.outputs_of_run(self.folder / "alone.jsonl", run))

    def test_end_to_end(self):
        self.end_in("batch1-stages1", signal.SIGKILL, -signal.SIGKILL)
        self.end_in("batch1-stages2", signal.SIGTERM, STOPPED)
        results = self.study / "results"
        self.reproduce("--report")
        self.assertIn("Runs of the plan that are not done: batch1-stages2, batch4-stages2, ",
                      (results / "report.md").read_text())
        said = self.reproduce()
        self.assertNotIn("not done", (results / "report.md").read_text())
        self.assertIn(f"report: {results}/report.html", said)

        lines = data.read_json_lines(results / "generations.jsonl")
        greedy = {(line["kind"], line["task_id"], line["draw"]): line for line in lines
                  if line["kind"] == "greedy"}
        runs = ["batch1-stages1", "batch4-stages1", "batch16-stages1", "batch1-stages2",
                "batch4-stages2", "batch16-stages2"]
        self.assertEqual([runs] * TASKS, [line["runs"] for line in greedy.values()])
        for key, output in self.undisturbed().items():
            self.assertEqual((output["text"], output["token_ids"]),
                             (greedy[key]["text"], greedy[key]["token_ids"]), key)

        interrupted = json.loads((results / "runs" / "batch1-stages2.json").read_text())
        self.assertEqual(2, len(interrupted["pieces"]))
        page = (results / "report.html").read_text()
        self.assertEqual(3, page.count("<svg"))
        self.assertNotRegex(page, r'(src|href)="(?!#)')
        self.assertNotIn(str(WORK), "".join(path.read_text() for path in results.rglob("*.*")))

        self.assertIn(" 0 differences", self.reproduce("--verify-claims", results))
        self.check(results)

    def test_without_a_sandbox_nothing_is_generated(self):
        (self.folder / "bwrap").write_text("#!/bin/sh\nexit 1\n")
        (self.folder / "bwrap").chmod(0o755)
        with unittest.mock.patch.dict(os.environ, PATH=f"{self.folder}:{os.environ['PATH']}"):
            said = self.reproduce(expect=70)
        self.assertIn("no sandbox: bwrap --version ended with 1", said)
        self.assertIn("nothing was generated", said)
        self.assertFalse((self.study / "runs").exists())

    def test_committed_results_hold_on_this_machine(self):
        committed = max((STUDY / "results").glob(f"*-{self.model.stem.lower()}"))
        self.assertIn(f"check: {TASKS + 3 * TASKS} requests compared with {committed}, 0 differ",
                      self.reproduce("--check", committed))

    def check(self, results):
        """With its own results, and with results in which one token is another."""
        copy = self.folder / "committed"
        shutil.copytree(results, copy)
        count = TASKS + 3 * TASKS
        self.assertIn(f"check: {count} requests compared with {copy}, 0 differ",
                      self.reproduce("--check", copy))
        self.assertFalse((self.study.with_name(f"{self.study.name}-check") / "bench").exists())
        lines = data.read_json_lines(copy / "generations.jsonl")
        lines[2]["token_ids"][0] += 1
        collect.write(copy / "generations.jsonl", lines)
        self.assertIn(f"check: {count} requests compared with {copy}, 1 differ",
                      self.reproduce("--check", copy, expect=1))


if __name__ == "__main__":
    harness.main()
