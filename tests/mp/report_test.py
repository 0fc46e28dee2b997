"""--trace, --report and the summary of real runs: their parts must fit together.

Nothing here depends on how fast the machine is: times add up by construction, and counts must match.
"""
import collections
import json
import os
import signal
import subprocess
import time

import harness

MODEL = "synthetic:tiny-opt"
ACTIVITIES = ("compute", "wait_weights", "wait_kv", "wait_previous", "idle", "other")


def requests(count=30, tokens=20):
    return [{"custom_id": f"r{i}", "prompt": [3 + i % 200] * (1 + 7 * i % 40), "max_tokens": tokens}
            for i in range(count)]


class Traced(harness.ProgramTest):
    def setUp(self):
        super().setUp()
        self.input, self.output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        self.trace, self.report = self.folder / "trace.json", self.folder / "report.json"
        harness.write_requests(self.input, requests())

    def options(self, *arguments, input=None):
        return ["generate", "--model", MODEL, "--input", input or self.input, "--output", self.output,
                "--threads", 1, "--max-batch", 6, "--token-ids", *arguments]

    def traced(self):
        return ["--trace", self.trace, "--report", self.report]

    def load(self, path):
        return json.loads(path.read_text())

    def expected(self):
        return self.generate(MODEL, requests(), "--threads", 1)

    def spans(self, trace):
        """Spans by (rank, thread name), in order of time."""
        names, spans = {}, collections.defaultdict(list)
        for event in trace["traceEvents"]:
            if event["ph"] == "M" and event["name"] == "thread_name":
                names[event["pid"], event["tid"]] = event["args"]["name"]
        for event in trace["traceEvents"]:
            if event["ph"] == "X":
                spans[event["pid"], names[event["pid"], event["tid"]]].append(event)
        for found in spans.values():
            found.sort(key=lambda e: (e["ts"], -e["dur"]))
        return spans

    def check_nesting(self, spans):
        """Spans of a thread lie in one another or apart."""
        rounding = 0.002  # us, of two figures with three decimals
        for thread, events in spans.items():
            open_ends = []
            for event in events:
                end = event["ts"] + event["dur"]
                self.assertGreaterEqual(event["dur"], 0)
                while open_ends and open_ends[-1] <= event["ts"] + rounding:
                    open_ends.pop()
                if open_ends:
                    self.assertLessEqual(end, open_ends[-1] + rounding, (thread, event))
                    self.assertEqual("compute", thread[1], "transfers of a thread overlap")
                open_ends.append(end)

    def check_transfers(self, spans, ranks):
        """What one rank sent to another is what the other received, message by message."""
        sent, received = collections.Counter(), collections.Counter()
        for (rank, thread), events in spans.items():
            for event in events:
                key = event["name"], event["args"].get("bytes")
                if thread.startswith("send"):
                    sent[rank, event["args"]["peer"], *key] += 1
                if thread.startswith("receive"):
                    received[event["args"]["peer"], rank, *key] += 1
        self.assertEqual(sent, received)
        self.assertEqual(ranks > 1, bool(sent))

    def check_report(self, report, ranks):
        stages = report["stages"]
        self.assertEqual(list(range(ranks)), [stage["rank"] for stage in stages])
        for stage in stages:
            self.assertEqual(stage["ns"]["wall"], sum(stage["ns"][a] for a in ACTIVITIES))
            self.assertAlmostEqual(stage["wall_s"], sum(stage["seconds"].values()), 6)
            self.assertEqual(report["tokens"]["prompt"], stage["prefill_rows"])
            # The last token of a sequence is not fed.
            self.assertEqual(report["tokens"]["generated"] - report["requests"]["done"],
                             stage["decode_rows"])
            self.assertEqual(stages[0]["steps"], stage["steps"])
            self.assertGreater(stage["ns"]["compute"], 0)
            self.assertGreater(stage["peak_memory_bytes"], 1 << 20)
        for this, following in zip(stages, stages[1:] + stages[:1]):
            if ranks > 2:  # else both ways share a pair
                self.assertEqual(this["moved"]["sent"], dict(following["moved"]["received"], bytes_per_s=
                                 this["moved"]["sent"]["bytes_per_s"]))
        self.assertEqual(sum(s["moved"]["sent"]["bytes"] for s in stages),
                         sum(s["moved"]["received"]["bytes"] for s in stages))
        self.assertEqual({"done": 30, "failed": 0, "resumed": 0}, report["requests"])
        self.assertEqual("done", report["outcome"])
        self.assertEqual(30 * 20, report["tokens"]["generated"])
        self.assertAlmostEqual(600 / report["generation_s"], report["generated_tokens_per_s"], 3)

    def check_run(self, ranks):
        job = self.run_program(*self.options(*self.traced()), ranks=ranks)
        self.assert_same_results(self.expected(), harness.read_results(self.output))
        trace, report, ranks = self.load(self.trace), self.load(self.report), ranks or 1
        self.check_report(report, ranks)
        spans = self.spans(trace)
        self.check_nesting(spans)
        self.check_transfers(spans, ranks)
        self.assertTrue(trace["otherData"]["complete"])
        self.assertEqual(ranks, len(trace["otherData"]["clocks"]))
        names = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
        self.assertEqual({f"rank {r} on {report['stages'][r]['host']}" for r in range(ranks)}, names)
        for rank, stage in enumerate(report["stages"]):
            computed = collections.Counter(e["name"] for e in spans[rank, "compute"])
            layers = stage["layers"][1] - stage["layers"][0] + 1
            self.assertEqual(stage["steps"], computed["step"])
            self.assertEqual(layers * stage["steps"], computed["layer"])
            self.assertEqual(rank == ranks - 1, computed["head"] > 0)
            # The trace shows what the report counts as computing, and nothing else.
            in_steps = sum(e["dur"] for e in spans[rank, "compute"] if e["name"] == "step") * 1e3
            self.assertLessEqual(in_steps, stage["ns"]["compute"] + stage["ns"]["wait_weights"])
        self.check_causes(spans, trace["otherData"]["clocks"])
        self.assertEqual(1, job.log().count("bottleneck: "))
        self.assertTrue(job.log().rstrip().endswith(report["bottleneck"]["text"]), job.log())

    def check_causes(self, spans, clocks):
        """In the aligned time no rank begins a step before the one before it has begun the same."""
        begins = collections.defaultdict(dict)
        for (rank, thread), events in spans.items():
            for event in events:
                if thread == "compute" and event["name"] == "step":
                    begins[event["args"]["step"]][rank] = event["ts"]
        for step, by_rank in begins.items():
            for rank in range(1, len(clocks)):
                error = (clocks[rank]["error_ns"] + clocks[rank - 1]["error_ns"]) / 1e3
                self.assertGreater(by_rank[rank] + 2 * error, by_rank[rank - 1], f"step {step}")

    def test_alone(self):
        self.check_run(None)

    def test_one_rank(self):
        self.check_run(1)

    def test_three_ranks(self):
        self.check_run(3)

    def test_quiet_has_no_summary_but_writes_files(self):
        job = self.run_program(*self.options("--quiet", *self.traced()), ranks=2)
        self.assertNotIn("bottleneck", job.log())
        self.assertEqual(2, len(self.load(self.report)["stages"]))
        self.assertTrue(self.load(self.trace)["traceEvents"])

    def test_a_pause_of_the_input_is_idle_time_on_every_rank(self):
        job = self.start(*self.options(*self.traced(), input="-"), ranks=3, stdin=subprocess.PIPE)
        job.process.stdin.write(self.input.read_bytes())
        job.process.stdin.flush()
        job.await_lines(self.output, 30)
        time.sleep(2)
        job.process.stdin.close()
        self.assertEqual(harness.DONE, job.wait(), job.log())
        report = self.load(self.report)
        self.assertEqual("input", report["bottleneck"]["resource"])
        for stage in report["stages"]:
            self.assertGreater(stage["seconds"]["idle"], 1.9)

    # ---- runs that do not come to their end ----

    def start_long(self, ranks, *arguments):
        harness.write_requests(self.input, requests(3000, 60))
        job = self.start(*self.options(*self.traced(), *arguments), ranks=ranks)
        job.await_lines(self.output, 10)
        return job

    def test_interrupted(self):
        job = self.start_long(None)
        job.process.send_signal(signal.SIGINT)
        self.assertEqual(harness.TRY_AGAIN, job.wait(), job.log())
        trace = self.load(self.trace)
        self.assertTrue(trace["otherData"]["complete"])
        self.assertTrue(self.spans(trace)[0, "compute"])
        self.assertEqual("interrupted", self.load(self.report)["outcome"])

    def test_interrupted_ranks(self):
        job = self.start_long(3)
        os.kill(job.rank_process(0), signal.SIGTERM)
        self.assertEqual(harness.TRY_AGAIN, job.wait(), job.log())
        spans = self.spans(self.load(self.trace))
        self.assertEqual({0, 1, 2}, {rank for rank, _ in spans})
        self.check_nesting(spans)
        self.assertEqual("interrupted", self.load(self.report)["outcome"])

    def test_interrupted_mpirun(self):
        job = self.start_long(3)
        job.process.send_signal(signal.SIGINT)
        self.assertNotEqual(harness.DONE, job.wait(), job.log())
        job.await_no_process()
        self.load(self.trace)  # is JSON

    def test_killed(self):
        job = self.start_long(None)
        job.process.kill()
        job.wait()
        self.assertFalse(self.load(self.trace)["otherData"]["complete"])

    def test_lost_rank_leaves_what_rank_0_saw(self):
        job = self.start_long(2, "--peer-timeout", 2)
        os.kill(job.rank_process(1), signal.SIGSTOP)
        self.assertEqual(harness.TRY_AGAIN, job.wait(), job.log())
        self.assertTrue(self.spans(self.load(self.trace))[0, "compute"])

    # ---- files that cannot be written ----

    def check_failing_file(self, option, ranks):
        job = self.run_program(*self.options(option, "/dev/full"), ranks=ranks, expect=74)
        self.assertIn(f"{option} /dev/full: writing failed: No space left on device", job.log())
        self.assert_same_results(self.expected(), harness.read_results(self.output))
        self.output.unlink()

    def test_full_disk_costs_no_results(self):
        for ranks in (None, 3):
            for option in ("--trace", "--report"):
                with self.subTest(option=option, ranks=ranks):
                    self.check_failing_file(option, ranks)

    def test_wrong_paths_are_refused_before_the_work(self):
        for option in ("--trace", "--report"):
            for path, code in ((self.folder / "no/where.json", harness.USAGE), (self.folder, harness.USAGE),
                               (self.input, harness.USAGE), (self.output, harness.USAGE),
                               ("/sys/no-file-here.json", 74)):
                with self.subTest(option=option, path=path):
                    before = self.input.read_bytes()
                    job = self.run_program(*self.options(option, path), expect=code)
                    self.assertIn(f"{option} {path}", job.log())
                    self.assertFalse(self.output.exists())
                    self.assertEqual(before, self.input.read_bytes())


if __name__ == "__main__":
    harness.main()
