"""experiments/mbpp/study: prompts, estimates, what is kept of a run, claims."""
import fractions
import gzip
import itertools
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import time
import unittest

import harness

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STUDY = REPOSITORY / "experiments" / "mbpp"
sys.path.insert(0, str(STUDY))
from scoring import journal as scoring_journal
from study import carry, check, claims, collect, data, estimates, follow, gather, generate
from study import manifest, metrics, peer, plan, prompts, report, verify

TASK = data.Task("Mbpp/2", '"""\nWrite a function.\nassert f(1) == 2\n"""\n')


class Prompts(harness.ProgramTest):
    def test_request(self):
        request = prompts.request(TASK, 0)
        self.assertEqual("Mbpp/2#0", request["custom_id"])
        user, assistant = request["body"]["messages"]
        self.assertEqual(
            "Please provide a self-contained Python script that solves the following problem in a "
            'markdown code block:\n```\n"""\nWrite a function.\nassert f(1) == 2\n"""\n```\n',
            user["content"])
        self.assertEqual("assistant", assistant["role"])
        self.assertTrue(assistant["content"].endswith("corresponding tests:\n```python\n"))
        self.assertEqual(["<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(",
                          "\nprint(", "\n```\n"], request["body"]["stop"])
        self.assertEqual((0, 768), (request["body"]["temperature"], request["body"]["max_tokens"]))
        self.assertNotIn("seed", request["body"])

    def test_seeds_are_of_task_and_draw(self):
        seeds = {prompts.request(data.Task(f"Mbpp/{task}", ""), draw, sampled=True)["body"]["seed"]
                 for task in range(100) for draw in range(10)}
        self.assertEqual(1000, len(seeds))
        # printf 'Mbpp/2#3' | sha256sum: 2b3a0e06...
        self.assertEqual(0x2b3a0e06, prompts.seed_of("Mbpp/2", 3))

    def test_chatml_is_the_program_s_chat_template(self):
        """The text that peers get has the tokens of the chat request that headrace gets."""
        model = harness.real_model(harness.SMOL)
        system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        request = prompts.request(TASK, 0)["body"]
        text = prompts.chatml(request["messages"], system)
        found = self.generate(model, [{"messages": request["messages"], "max_tokens": 4},
                                      {"prompt": text, "max_tokens": 4}])
        chat, plain = found["line-1"], found["line-2"]
        self.assertEqual(chat["response"]["body"]["usage"], plain["response"]["body"]["usage"])
        self.assertEqual(harness.token_ids(chat), harness.token_ids(plain))


class Estimates(unittest.TestCase):
    def test_pass_at_k_is_exact(self):
        """Against the share of all choices of k samples that have a correct one."""
        for samples in range(1, 9):
            for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
                choices = list(itertools.combinations(range(samples), k))
                share = fractions.Fraction(sum(min(c) < correct for c in choices), len(choices))
                self.assertAlmostEqual(float(share), estimates.pass_at_k(samples, correct, k),
                                       delta=1e-15)

    def test_pass_at_k_needs_k_samples(self):
        with self.assertRaises(ValueError):
            estimates.pass_at_k(5, 2, 6)

    def test_wilson(self):
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        for passed, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                         (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
            found = estimates.wilson(passed, count)
            self.assertAlmostEqual(low, found[0], delta=5e-5)
            self.assertAlmostEqual(high, found[1], delta=5e-5)

    def test_bootstrap_is_about_the_normal_interval(self):
        values = [0.0] * 60 + [1.0] * 40
        low, high = estimates.bootstrap(values)
        half = 1.96 * math.sqrt(0.4 * 0.6 / 100)
        self.assertAlmostEqual(0.4 - half, low, delta=0.015)
        self.assertAlmostEqual(0.4 + half, high, delta=0.015)
        self.assertEqual((low, high), estimates.bootstrap(values))

    def test_percentile_is_the_nearest_rank(self):
        values = [5, 1, 4, 2, 3]
        self.assertEqual([1, 3, 5, 5], [estimates.percentile(values, p) for p in (.2, .5, .9, 1)])


class Latency(harness.ProgramTest):
    def test_a_request_begins_when_a_slot_comes_free(self):
        finished = {"a": 5.0, "b": 2.0, "c": 6.0, "d": 9.0}
        # Two slots: c takes b's place at 2, d takes a's at 5.
        self.assertEqual({"a": 5.0, "b": 2.0, "c": 4.0, "d": 4.0},
                         follow.latencies("abcd", finished, 2))

    def test_more_slots_than_requests(self):
        self.assertEqual({"a": 5.0, "b": 2.0},
                         follow.latencies("ab", {"a": 5.0, "b": 2.0}, 64))

    def test_follower_sees_whole_lines(self):
        path = self.folder / "out.jsonl"
        path.write_text('{"custom_id": "old"}\n')
        follower = follow.Follower(path)
        with open(path, "a") as file:
            file.write('{"custom_id": "a"}\n{"custom')
            file.flush()
            time.sleep(5 * follow.POLL)
            file.write('_id": "b"}\n')
        follower.close()
        self.assertEqual(["a", "b"], [name for name, _ in follower.seen])
        times = follow.finish_times(follower.seen, 10.0)
        self.assertEqual(10.0, times["b"])
        self.assertLess(times["a"], 10.0)


class Data(harness.ProgramTest):
    def test_offline_file_is_checked(self):
        (self.folder / data.FILE).write_text("{}\n")
        with self.assertRaisesRegex(data.DataError, "sha256"):
            data.fetch(self.folder / "there", self.folder)
        self.assertFalse((self.folder / "there").exists())

    def test_offline_file_may_be_compressed(self):
        shared = harness.shared_file("data/mbpp/MbppPlus-v0.2.0.jsonl")
        with gzip.open(self.folder / (data.FILE + ".gz"), "wb", compresslevel=1) as file:
            file.write(shared.read_bytes())
        path = data.fetch(self.folder / "there", self.folder)
        tasks = data.read_tasks(path, 3)
        self.assertEqual(["Mbpp/2", "Mbpp/3", "Mbpp/4"], [task.task_id for task in tasks])
        self.assertEqual(data.TASKS, len(data.read_tasks(path)))
        with self.assertRaisesRegex(data.DataError, "379"):
            data.read_tasks(path, 379)

    def test_missing_file_says_what_to_do(self):
        with self.assertRaisesRegex(data.DataError, "download https://"):
            data.fetch(self.folder / "there", self.folder)


def output(task, draw, text, ids, names, **more):
    return {"task_id": task, "draw": draw, "text": text, "token_ids": ids, "runs": names,
            "finish": "stop", "prompt_tokens": 9, "kind": "greedy", **more}


MACHINE = {"cpu": "c", "vector_flags": ["avx2"], "usable_cores": 2, "boot": "b1"}


def piece(finished, seconds):
    tokens = 3 * len(finished)
    return {"outcome": "done", "started": 1, "load_s": 1.0, "generation_s": seconds,
            "tokens": {"prompt": 9 * len(finished), "shared": 0, "generated": tokens}, "cpu_s": 2 * seconds,
            "requests": {"done": len(finished), "failed": 0, "resumed": 0},
            "others_cpu_share": 0.1, "steps": 5, "stages": [], "finished_s": finished,
            "machine": MACHINE}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def rates(value):
    return {"min": value - 1, "median": value, "max": value + 1}


def make_results(folder, other_ids=(1, 2, 3)):
    """A results directory of two greedy runs of two tasks and a sampled one, written by hand.
    other_ids: what the second run has for the second task, (1, 2, 3) in the first."""
    names = ["batch1-stages1", "batch4-stages1"]
    ids = [[1, 2, 3], list(other_ids)]
    lines = [output("Mbpp/2", 0, "a", [7, 8, 9], names)]
    if ids[0] == ids[1]:
        lines.append(output("Mbpp/3", 0, "b", ids[0], names))
    else:
        lines.append(output("Mbpp/3", 0, "b", ids[0], names[:1]))
        lines.append(output("Mbpp/3", 0, "c", ids[1], names[1:]))
    lines += [output("Mbpp/2", draw, f"s{draw}", [draw, 1, 2], ["sampled-batch64-stages1"],
                     kind="sampled") for draw in range(5)]
    for number, line in enumerate(lines):
        line["sample"] = number
    verdicts = [{"task_id": line["task_id"], "sample": line["sample"],
                 "base": "pass" if line["text"] in ("a", "b", "s0") else "timeout",
                 "plus": "pass" if line["text"] in ("a", "s0") else "fail"} for line in lines]
    write_lines(folder / "generations.jsonl", lines)
    write_lines(folder / "verdicts.jsonl", verdicts)
    for name, batch, kind, ended in ((names[0], 1, "greedy", {"Mbpp/2#0": 1.0, "Mbpp/3#0": 3.0}),
                                     (names[1], 4, "greedy", {"Mbpp/2#0": 1.0, "Mbpp/3#0": 1.5}),
                                     ("sampled-batch64-stages1", 64, "sampled",
                                      {f"Mbpp/2#{draw}": 1.0 for draw in range(5)})):
        run = plan.Run(name, kind, batch, 1, 2, 2)
        write_json(folder / "runs" / f"{name}.json",
                   {"run": vars(run), "pieces": [piece(ended, max(ended.values()))]})
    write_json(folder / "bench" / "stages1.json", {"machine": MACHINE, "name": "Q AWQ", "batches": [{
        "batch": 1, "prefill_tokens_per_s": rates(50.0), "decode_tokens_per_s": rates(10.0),
        "generated_tokens_per_s": rates(8.0)}]})
    write_json(folder / "scoring.json", {"evalplus": "0.3.1", "sandbox": "none", "sanitiser": "x"})
    greedy = {"max_tokens": 768}
    write_json(folder / "manifest.json", {
        "model": {"name": "qwen2.5-coder-0.5b-instruct.gguf", "sha256": "1" * 64}, "tasks": 2, "started": "2026-11-26T00:00",
        "missing_runs": [],
        "data": {"name": data.VERSION, "sha256": data.SHA256},
        "machine": {"cpu": {"usable_cores": 2, "model": "c", "vector_flags": ["avx2"]}},
        "versions": {"headrace": "headrace 0"}, "sampling": {
            "greedy": greedy, "sampled": {"temperature": 0.8, "top_p": 0.95}},
        "fixed_length": {"prompt_tokens": 128, "generate_tokens": 128, "repeat": 3}})
    write_reports(folder)


def write_reports(folder):
    """As study.main does, without plots."""
    files = metrics.read(folder)
    computed = metrics.results_of(files)
    found = claims.claims_of(files, computed)
    text = report.markdown(files, computed, found, metrics.load_json(folder / "scoring.json"),
                           metrics.load_json(claims.PUBLISHED), [])
    (folder / "results.json").write_text(json.dumps(computed))
    (folder / "claims.json").write_text(claims.text_of(found))
    (folder / "report.md").write_text(text)
    (folder / "report.html").write_text("\n".join(claim.text for claim in found.values()))


class Results(harness.ProgramTest):
    def results(self, **more):
        make_results(self.folder, **more)
        return metrics.results_of(metrics.read(self.folder))

    def test_accuracy_and_speed(self):
        found = self.results()
        accuracy = found["accuracy"]["batch1-stages1"]
        # A program that passes the plus tests only after failing the base tests has not passed.
        self.assertEqual((2, 1), (accuracy["base"]["passed"], accuracy["plus"]["passed"]))
        speed = found["speed"]["batch1-stages1"]
        self.assertEqual((6, 3.0, 2.0), (speed["generated"], speed["seconds"],
                                         speed["generated_per_s"]))
        self.assertEqual(1.0, speed["generated_per_cpu_s"])
        self.assertEqual({"p50": 1.0, "p90": 2.0, "p99": 2.0}, speed["latency_s"])
        self.assertEqual(1.5, found["speed"]["batch4-stages1"]["latency_s"]["p99"])

    def test_report_explains_what_is_published_for_the_model(self):
        make_results(self.folder)
        lines = (self.folder / "report.md").read_text().split("\n")
        self.assertIn("What of the difference can be shown with this model file:", lines)
        self.assertIn("- Limit: 0 outputs of batch1-stages1 were cut at the token limit.", lines)

        self.assertIn('- Weights: the file says of itself that it is "Q AWQ".', lines)

    def test_report_names_machines_that_differ(self):
        make_results(self.folder)
        files = metrics.read(self.folder)
        self.assertEqual("- One machine.\n", report.machines(files))
        # The same kind of processor, but another machine, or the same one started again.
        files.runs["batch4-stages1"]["pieces"][0]["machine"] = {**MACHINE, "boot": "b2"}
        self.assertIn("- 2 machines, or one that was started 2 times, between which rates compare "
                      "badly: A, 2 cores of c (avx2): batch1-stages1, sampled-batch64-stages1, "
                      "fixed length, stages1; B, 2 cores of c (avx2): batch4-stages1.",
                      report.machines(files))
        self.assertEqual(["headrace, A", "headrace, B"],
                         [report.label(files, name) for name in ("batch1-stages1",
                                                                 "batch4-stages1")])

    def test_report_of_another_model_has_nothing_published_for_this_one(self):
        make_results(self.folder)
        path = self.folder / "manifest.json"
        made = metrics.load_json(path)
        self.assertIn("52.4", (self.folder / "report.md").read_text())
        write_json(path, {**made, "model": {**made["model"], "name": "SmolLM2.gguf"}})
        write_reports(self.folder)
        text = (self.folder / "report.md").read_text()
        self.assertIn("SmolLM2.gguf is another model, beside the question.", text)
        self.assertIn("| Gemini 1.5 Pro 002, *not run* |", text)
        self.assertNotIn("52.4", text)

    def test_pass_at_k(self):
        found = self.results()["pass_at_k"]["sampled-batch64-stages1"]
        self.assertEqual(["1", "5"], list(found["k"]))
        self.assertAlmostEqual(0.2, found["k"]["1"]["base"]["value"])
        self.assertAlmostEqual(1.0, found["k"]["5"]["plus"]["value"])

    def test_pass_at_k_of_the_tasks_that_all_runs_have(self):
        verdict = lambda good: {"base": "pass" if good else "fail", "plus": "fail"}
        run = lambda tasks: {(task, draw): ({}, verdict(task == "Mbpp/2" or draw))
                             for task in tasks for draw in range(2)}
        runs = {"a": run(["Mbpp/2", "Mbpp/3"]), "b": run(["Mbpp/3", "Mbpp/4"])}
        found = metrics.pass_at_ks_of_common(runs)
        self.assertEqual([(1, 0.5), (1, 0.5)], [(of["tasks"], of["k"]["1"]["base"]["value"])
                                                for of in found.values()])
        self.assertEqual({}, metrics.pass_at_ks_of_common({"a": runs["a"]}))
        self.assertEqual({}, metrics.pass_at_ks_of_common({"a": runs["a"], "c": run(["Mbpp/9"])}))

    def test_differences(self):
        entry, = self.results()["differences"]
        self.assertEqual((2, 0, 0, 0), (entry["requests"], entry["token_ids"], entry["texts"],
                                        entry["base"]))
        entry, = self.results(other_ids=(1, 2, 4))["differences"]
        self.assertEqual((1, 1, 1, 0), (entry["token_ids"], entry["texts"], entry["base"],
                                        entry["plus"]))

    def test_run_in_pieces(self):
        make_results(self.folder)
        path = self.folder / "runs" / "batch1-stages1.json"
        run = metrics.load_json(path)
        first, second = piece({"Mbpp/2#0": 1.0}, 1.5), piece({"Mbpp/3#0": 2.0}, 2.0)
        first["outcome"] = "interrupted"
        write_json(path, {**run, "pieces": [first, second]})
        speed = metrics.results_of(metrics.read(self.folder))["speed"]["batch1-stages1"]
        self.assertEqual((2, 3.5, 6, 0), (speed["pieces"], speed["seconds"], speed["generated"],
                                          speed["untimed_requests"]))
        # Its pieces begin and end with fewer requests in flight.
        self.assertIsNone(speed["latency_s"])
        # What the interruption threw away is no output; the time that it took counts.
        first["tokens"]["generated"] += 100
        write_json(path, {**run, "pieces": [first, second]})
        speed = metrics.results_of(metrics.read(self.folder))["speed"]["batch1-stages1"]
        self.assertEqual((3.5, 6), (speed["seconds"], speed["generated"]))
        write_reports(self.folder)
        self.assertIn("generated 1.7 tokens/s over the whole run (in 2 pieces).",
                      (self.folder / "report.md").read_text())
        # A piece that was killed leaves nothing but its results.
        write_json(path, {**run, "pieces": [second]})
        speed = metrics.results_of(metrics.read(self.folder))["speed"]["batch1-stages1"]
        self.assertEqual((1, 2.0, 3, 1), (speed["pieces"], speed["seconds"], speed["generated"],
                                          speed["untimed_requests"]))
        self.assertIsNone(speed["latency_s"])

    def test_tasks_without_an_answer_are_not_passed(self):
        outputs = {("Mbpp/2", 0): ({"finish": "stop"}, {"base": "pass", "plus": "pass"})}
        base = metrics.accuracy(outputs, asked=4)["base"]
        self.assertEqual((1, 4, 0.25), (base["passed"], base["tasks"], base["value"]))

    def test_an_endpoint_with_other_requests_or_elsewhere_is_no_twin(self):
        here, tasks = {"machine": MACHINE}, {("Mbpp/2", 0): None}
        run = {"pieces": [{"machine": MACHINE}]}
        self.assertTrue(metrics.is_twin(here, tasks, run, dict(tasks)))
        self.assertFalse(metrics.is_twin(None, tasks, run, dict(tasks)))  # somebody else's server
        self.assertFalse(metrics.is_twin({"machine": {**MACHINE, "boot": "b2"}}, tasks, run,
                                         dict(tasks)))
        self.assertFalse(metrics.is_twin(here, tasks, run, {**tasks, ("Mbpp/3", 0): None}))

    def test_report_beside_another_program(self):
        make_results(self.folder)
        twin = "peer-batch4"
        lines = data.read_json_lines(self.folder / "generations.jsonl")
        for line in lines[:2]:
            line["runs"].append(twin)
        lines.append(output("Mbpp/2", 0, "e", None, ["server-c4"], kind="endpoint", sample=9,
                            prompt_tokens=10))
        lines.append(output("Mbpp/3", 0, "b", None, ["server-c4"], kind="endpoint", sample=10))
        write_lines(self.folder / "generations.jsonl", lines)
        write_lines(self.folder / "verdicts.jsonl", [
            *data.read_json_lines(self.folder / "verdicts.jsonl"),
            *({"task_id": line["task_id"], "sample": line["sample"], "base": "fail", "plus": "fail"}
              for line in lines[-2:])])
        write_json(self.folder / "runs" / f"{twin}.json", {
            "run": vars(plan.Run(twin, "greedy", 4, 1, 2, 2)),
            "pieces": [piece({"Mbpp/2#0": 1.0, "Mbpp/3#0": 1.5}, 1.5)]})
        answer = {"session": 1, "finish": "stop", "failures": [], "waited_s": 0, "latency_s": 3.0,
                  "usage": {"prompt_tokens": 9, "completion_tokens": 3}, "started": 0, "ended": 3}
        write_lines(self.folder / "endpoint" / "server-c4.jsonl", [
            {"label": "server", "model": "m", "api": "completions", "concurrency": 4,
             "host": "127.0.0.1", "tasks": 2},
            *({**answer, "task_id": task, "draw": 0} for task in ("Mbpp/2", "Mbpp/3"))])
        write_json(self.folder / "endpoint" / "server-c4.json",
                   {"machine": MACHINE, "others_cpu_share": 0.25, "parameters": {"a": 1}})
        path = self.folder / "manifest.json"
        write_json(path, {**metrics.load_json(path),
                          "peers": {"server": {"command": "s", "about": "Built so."}}})
        write_reports(self.folder)
        text = (self.folder / "report.md").read_text()
        for said in ("## Beside another program", "Built so.", "| headrace | 4 | 4.0 |",
                     'Their requests say `{"a": 1}` as well.',
                     "| server | 4 | 2.0 |",
                     "(peer-batch4) generated 2.00 times the tokens/s of server at concurrency 4",
                     "server at concurrency 4 (2 tasks): 1 of 2 texts are other than headrace's.",
                     "counted another number of prompt tokens than headrace in 1 of 2 requests.",
                     "During server-c4, other programs took 25 % of"):
            self.assertIn(said, text)
        self.assertNotIn("server", text.split("## Table")[1].split("## ")[0])
        self.assertEqual([], verify.verify(self.folder)[0])
        # The same journal of a server that somebody else ran.
        (self.folder / "endpoint" / "server-c4.json").unlink()
        write_reports(self.folder)
        text = (self.folder / "report.md").read_text()
        self.assertNotIn("## Beside another program", text)
        self.assertIn("| server | 4 | 2.0 | 3.0 / 3.0 / 3.0 | 0.0 (0.0–65.8) |",
                      text.split("## Other endpoints")[1].split("## ")[0])

    def test_answers_to_tasks_of_another_study_are_refused(self):
        found = {("endpoint", "Mbpp/3", 0): [[{}, ["hosted"]]]}
        with self.assertRaisesRegex(data.DataError, "hosted answered Mbpp/3.*--tasks"):
            collect.lines_of(found, ["Mbpp/2"])

    def test_another_program_makes_another_study(self):
        old = {"program": {"sha256": "1"}, "tasks": 5}
        self.assertEqual([], manifest.same_study(old, dict(old)))
        self.assertEqual(["program"], manifest.same_study(old, {**old, "program": {"sha256": "2"}}))

    def test_the_order_of_the_runs_is_free(self):
        study_plan = plan.full(378, qwen_prompt=True)
        runs = [vars(run) for run in study_plan.runs]
        names = [run["name"] for run in runs]
        self.assertEqual((14, 14), (len(names), len(set(names))))
        self.assertEqual(["batch64-stages1", "batch16-stages1", "batch4-stages1", "batch1-stages1"],
                         names[:4])
        old = {"runs": runs, "program": {"sha256": "1"}}
        self.assertEqual([], manifest.same_study(old, {**old, "runs": runs[::-1]}))
        self.assertEqual(["runs"], manifest.same_study(old, {**old, "runs": runs[1:]}))

    def test_what_the_sanitiser_changes_is_said_of_greedy_outputs(self):
        make_results(self.folder)
        as_is = [{"task_id": line["task_id"], "sample": line["sample"], "base": "fail",
                  "plus": "fail"} for line in data.read_json_lines(self.folder / "generations.jsonl")]
        write_lines(self.folder / "as-is" / "verdicts.jsonl", as_is[:2])
        computed = metrics.results_of(metrics.read(self.folder))
        self.assertEqual(["batch1-stages1"], list(computed["accuracy_without_sanitiser"]))
        bare = computed["accuracy_without_sanitiser"]["batch1-stages1"]["base"]
        self.assertEqual((0, 2), (bare["passed"], bare["tasks"]))
        self.assertEqual(2, computed["accuracy"]["batch1-stages1"]["base"]["passed"])
        write_lines(self.folder / "as-is" / "verdicts.jsonl", as_is)  # sampled ones have none
        with self.assertRaisesRegex(data.DataError, "not those of generations.jsonl"):
            metrics.read(self.folder)

    def test_verdicts_of_other_generations_are_refused(self):
        make_results(self.folder)
        verdicts = data.read_json_lines(self.folder / "verdicts.jsonl")
        write_lines(self.folder / "verdicts.jsonl", verdicts[::-1])
        with self.assertRaisesRegex(data.DataError, "score it again"):
            metrics.read(self.folder)

    def test_tabs_are_spaces_as_evalplus_has_them(self):
        write_lines(self.folder / "out.jsonl", [{
            "custom_id": "Mbpp/2#0", "error": None, "response": {"body": {
                "choices": [{"message": {"content": "if x:\n\treturn"}, "token_ids": [1],
                             "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}}}])
        (_, found), = collect.outputs_of_run(self.folder / "out.jsonl",
                                             plan.Run("r", "greedy", 1, 1, 2, 1))
        self.assertEqual("if x:\n    return", found["text"])

    def test_equal_outputs_are_one_line(self):
        same, other = {"text": "a", "token_ids": [1]}, {"text": "a", "token_ids": [2]}
        key = ("greedy", "Mbpp/2", 0)
        found = collect.distinct([("r1", [(key, same)]), ("r2", [(key, other)]),
                                  ("r3", [(key, dict(same))])])
        lines = collect.lines_of(found, ["Mbpp/2"])
        self.assertEqual([(0, ["r1", "r3"]), (1, ["r2"])],
                         [(line["sample"], line["runs"]) for line in lines])


class Verify(harness.ProgramTest):
    def setUp(self):
        super().setUp()
        make_results(self.folder)

    def wrong(self):
        return verify.verify(self.folder)[0]

    def test_what_was_computed_is_right(self):
        wrong, count = verify.verify(self.folder)
        self.assertEqual([], wrong)
        self.assertGreater(count, 30)

    def test_every_file_that_is_changed_is_found(self):
        changes = {"verdicts.jsonl": ('"base": "timeout"', '"base": "pass"'),
                   "generations.jsonl": ('"finish": "stop"', '"finish": "length"'),
                   "runs/batch4-stages1.json": ('"generation_s": 1.5', '"generation_s": 1.25'),
                   "runs/batch1-stages1.json": ('"generated": 6', '"generated": 7'),
                   "bench/stages1.json": ('"median": 8.0', '"median": 8.5'),
                   "results.json": ('"passed": 2', '"passed": 3'),
                   "claims.json": ("2.0 tokens/s", "3.0 tokens/s"),
                   "report.md": ("| 2.0 |", "| 2.5 |"),
                   "report.html": ("2.0 tokens/s", "3.0 tokens/s")}
        for name, (old, new) in changes.items():
            with self.subTest(name=name):
                path = self.folder / name
                text = path.read_text()
                self.assertIn(old, text)
                path.write_text(text.replace(old, new, 1))
                self.assertNotEqual([], self.wrong())
                path.write_text(text)
        self.assertEqual([], self.wrong())

    def test_command_line(self):
        command = [STUDY / "reproduce.sh", "--verify-claims", self.folder]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"verify: \d+ claims computed again, 0 differences")
        path = self.folder / "claims.json"
        path.write_text(path.read_text().replace("2.0 tokens/s", "3.0 tokens/s"))
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(1, done.returncode, done.stdout + done.stderr)

    def test_one_claim_by_its_command(self):
        done = subprocess.run([sys.executable, "-m", "study.claims", self.folder, "--claim",
                               "speed.batch1-stages1"], cwd=STUDY, capture_output=True, text=True)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("generated 2.0 tokens/s over the whole run", done.stdout)


class Check(harness.ProgramTest):
    def setUp(self):
        super().setUp()
        make_results(self.folder / "committed")

    def check(self, **more):
        make_results(self.folder / "fresh", **more)
        said = []
        good = check.check(self.folder / "committed", self.folder / "fresh", said.append)
        return good, "\n".join(said)

    def test_same(self):
        good, said = self.check()
        self.assertTrue(good)
        self.assertIn("7 requests compared", said)
        self.assertRegex(said, r"batch1-stages1 +2\.0 there +2\.0 here")

    def test_other_token_ids(self):
        good, said = self.check(other_ids=(1, 2, 4))
        self.assertFalse(good)
        self.assertIn("greedy Mbpp/3#0: other token ids in batch4-stages1", said)

    def test_other_model_is_refused(self):
        make_results(self.folder / "fresh")
        path = self.folder / "committed" / "manifest.json"
        path.write_text(path.read_text().replace("1" * 64, "2" * 64))
        with self.assertRaisesRegex(data.DataError, "something else: model"):
            check.check(self.folder / "committed", self.folder / "fresh", print)


# A headrace that has a result for every request at once, or an error in the last one's place.
FAKE = """#!{python}
import json, pathlib, sys
option = lambda name: pathlib.Path(sys.argv[sys.argv.index(name) + 1])
lines = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
done = [line["custom_id"] for line in lines(option("--output"))] if "--resume" in sys.argv else []
new = [line["custom_id"] for line in lines(option("--input")) if line["custom_id"] not in done]
with open(option("--output"), "a") as out:
    for name in new:
        error = {fails} and name == new[-1]
        print(json.dumps({{"custom_id": name, "error": "e" if error else None}}), file=out)
option("--report").write_text(json.dumps({{
    "outcome": "done", "load_s": 1, "generation_s": 2, "requests": {{}}, "stages": [
        {{"cpu_s": 1, "steps": 3, "rank": 0, "layers": 1, "threads": 1, "kernels": "", "cpu": "",
          "seconds": {{}}, "peak_memory_bytes": 1}}], "tokens": {{"generated": len(new)}}}}))
sys.exit({fails})
"""


class Generate(harness.ProgramTest):
    RUN = plan.Run("batch1-stages1", "greedy", 1, 1, 2, 5)
    TASKS = [data.Task(f"Mbpp/{number}", "") for number in range(5)]

    def generate(self, done, fails=0):
        """The run, of which a killed study left the first results; what was said, and the number of
        requests that have times."""
        program, said = self.folder / "headrace", []
        program.write_text(FAKE.format(python=sys.executable, fails=fails))
        program.chmod(0o755)
        setting = generate.Setting(program, "m", self.folder, generate.Child(), None)
        write_lines(self.folder / "runs" / self.RUN.name / "out.jsonl",
                    [{"custom_id": f"Mbpp/{number}#0", "error": None} for number in range(done)])
        generate.generate(setting, self.RUN, self.TASKS, said.append)
        self.assertTrue(generate.is_done(setting, self.RUN, self.TASKS))
        return said, len(generate.timed_in(setting, self.RUN))

    def test_a_killed_run_goes_on(self):
        said, timed = self.generate(done=1)
        self.assertEqual("batch1-stages1: 1 of 5 requests are done", said[0])
        self.assertEqual(4, timed)

    def test_a_killed_run_with_too_few_times_begins_again(self):
        for done in (2, 5):
            said, timed = self.generate(done)
            self.assertEqual([f"batch1-stages1: {done} requests are of a killed piece and have no "
                              "times; again", "batch1-stages1: 0 of 5 requests are done"], said[:2])
            self.assertEqual(5, timed)
            shutil.rmtree(self.folder / "runs")

    def test_a_failed_request_is_said(self):
        with self.assertRaisesRegex(generate.RunError, "1 requests failed; .*out.jsonl says why"):
            self.generate(done=0, fails=1)


class Carry(harness.ProgramTest):
    def test_measured_files_are_the_same_elsewhere(self):
        there, work, here = (self.folder / name for name in ("there", "work", "here"))
        make_results(there)
        journal = [{"label": "other", "model": "m"},
                   {"task_id": "Mbpp/2", "draw": 0, "session": 1, "finish": None,
                    "usage": None, "text": None},
                   {"task_id": "Mbpp/2", "draw": 0, "session": 2, "finish": "stop",
                    "usage": {"prompt_tokens": 9}, "text": "e"}]
        bare = [{key: value for key, value in line.items() if key != "text"} for line in journal]
        write_lines(there / "endpoint" / "other.jsonl", bare)
        lines = data.read_json_lines(there / "generations.jsonl")
        lines.append(output("Mbpp/2", 0, "e", None, ["other"], kind="endpoint", sample=9))
        write_lines(there / "generations.jsonl", lines)
        write_lines(there / "verdicts.jsonl", [
            *data.read_json_lines(there / "verdicts.jsonl"),
            {"task_id": "Mbpp/2", "sample": 9, "base": "fail", "plus": "fail"}])

        carry.restore(there, work)
        self.assertEqual(journal[1:], data.read_json_lines(work / "endpoint" / "other.jsonl")[1:])
        made = metrics.load_json(work / "manifest.json")
        self.assertNotIn("missing_runs", made)
        tasks = [data.Task("Mbpp/2", ""), data.Task("Mbpp/3", "")]
        greedy = tuple(plan.Run(f"batch{batch}-stages1", "greedy", batch, 1, 2, 2)
                       for batch in (1, 4, 16))
        setting = generate.Setting(None, None, work, None, 0)
        gather.gather(setting, plan.Plan(greedy, (), (1,), 3, 128), made, tasks, here)

        self.assertEqual(["batch16-stages1"], metrics.load_json(here / "manifest.json")["missing_runs"])
        for name in ("runs/batch1-stages1.json", "runs/batch4-stages1.json", "bench/stages1.json",
                     "endpoint/other.jsonl"):
            if name.endswith("l"):
                self.assertEqual(data.read_json_lines(there / name), data.read_json_lines(here / name))
            else:
                self.assertEqual(metrics.load_json(there / name), metrics.load_json(here / name))
        strip = lambda line: {key: value for key, value in line.items() if key != "sample"}
        self.assertEqual([strip(line) for line in lines if line["kind"] != "sampled"],
                         [strip(line) for line in data.read_json_lines(here / "generations.jsonl")])

    def test_an_interrupted_run_goes_on_elsewhere(self):
        before, results, after = (self.folder / name for name in ("before", "results", "after"))
        make_results(self.folder / "there")
        carry.restore(self.folder / "there", before / "study")
        begun = before / "study" / "runs" / "batch16-stages1"
        begun.mkdir()
        state = {"out.jsonl": json.dumps({"custom_id": "Mbpp/2#0", "error": None}) + '\n{"torn',
                 "out.jsonl.manifest.json": "{}", "pieces.json": "[]"}
        for name, text in {**state, "in.jsonl": "", "log": "", "report.json": ""}.items():
            (begun / name).write_text(text)
        greedy = tuple(plan.Run(f"batch{batch}-stages1", "greedy", batch, 1, 2, 2)
                       for batch in (1, 4, 16))
        setting = generate.Setting(None, None, before / "study", None, 0)
        tasks = [data.Task("Mbpp/2", ""), data.Task("Mbpp/3", "")]
        made = metrics.load_json(before / "study" / "manifest.json")
        gathered = lambda: gather.gather(setting, plan.Plan(greedy, (), (1,), 3, 128), made, tasks,
                                         results)
        gathered()
        for name in ("verdicts.jsonl", "scoring.json"):  # as scoring does
            (results / name).write_text((self.folder / "there" / name).read_text())
        write_lines(results / "verdicts.jsonl", [
            {"task_id": line["task_id"], "sample": line["sample"], "base": "pass", "plus": "fail"}
            for line in data.read_json_lines(results / "generations.jsonl")])

        carry.restore(results, after / "study")
        carried = after / "study" / "runs" / "batch16-stages1"
        self.assertEqual(state, {path.name: path.read_text() for path in carried.iterdir()})
        self.assertEqual({"Mbpp/2#0"}, generate.done_in(carried / "out.jsonl"))
        key = scoring_journal.key(metrics.load_json(results / "scoring.json"), "Mbpp/2", "a")
        with scoring_journal.Journal(after / "scoring" / "verdicts.jsonl") as book:
            self.assertEqual({"base": "pass", "plus": "fail"}, book.verdicts[key])

        (begun / "out.jsonl").unlink()
        gathered()
        self.assertFalse((results / "unfinished").exists())

    def test_an_interrupted_restore_is_done_again(self):
        there, work = self.folder / "there", self.folder / "work"
        make_results(there)
        (there / "verdicts.jsonl").unlink()  # as an interrupted report leaves it
        for broken in (work, work.with_name("work.part")):
            (broken / "runs" / "batch1-stages1").mkdir(parents=True)
            (broken / "runs" / "batch1-stages1" / "out.jsonl").write_text("{")
        carry.restore(there, work)
        self.assertEqual({"Mbpp/2#0", "Mbpp/3#0"},
                         generate.done_in(work / "runs" / "batch1-stages1" / "out.jsonl"))
        self.assertTrue((work / "manifest.json").exists())
        self.assertFalse(work.with_name("work.part").exists())

    def test_a_round_with_a_peer_is_of_one_machine(self):
        setting = generate.Setting(None, None, self.folder, None, 0)
        peers = [peer.Peer("first", ""), peer.Peer("second", "")]
        run = plan.Run("peer-batch4", "greedy", 4, 1, 2, 2)
        here, elsewhere = manifest.machine(), {**manifest.machine(), "boot": "another"}

        def leave(machine, labels):
            shutil.rmtree(self.folder / "runs", ignore_errors=True)
            write_json(self.folder / "runs" / run.name / "pieces.json", [{"machine": machine}])
            for label in labels:
                path = peer.facts_file(setting, peer.Peer(label, ""), 4)
                write_json(path, {"machine": machine})
                path.with_suffix(".jsonl").write_text("")
            peer.forget_elsewhere(setting, run, peers)
            return [(self.folder / "runs" / run.name).exists(),
                    peer.facts_file(setting, peers[0], 4).exists()]

        self.assertEqual([True, True], leave(here, ["first"]))
        self.assertEqual([False, False], leave(elsewhere, ["first"]))
        self.assertEqual([True, True], leave(elsewhere, ["first", "second"]))  # it is finished

    def test_where_no_study_is(self):
        done = subprocess.run([STUDY / "reproduce.sh", "--go-on", self.folder],
                              capture_output=True, text=True)
        self.assertEqual(2, done.returncode)
        self.assertIn(f"--go-on {self.folder} holds no results", done.stderr)


class Committed(unittest.TestCase):
    def test_claims_of_all_committed_results(self):
        folders = sorted((STUDY / "results").glob("*/"))
        self.assertGreater(len(folders), 1)
        for folder in folders:
            with self.subTest(results=folder.name):
                self.assertEqual([], verify.verify(folder)[0])

    def test_the_tables_of_both_readmes(self):
        """They are of the results whose plot is below them."""
        for readme in (STUDY / "README.md", REPOSITORY / "README.md"):
            text = readme.read_text(encoding="utf-8")
            name = re.search(r"results/([^/]+)/speed.svg", text)[1]
            files = metrics.read(STUDY / "results" / name)
            found = claims.claims_of(files, metrics.results_of(files))
            self.assertIn(report.short_table(files, report.Figures(found)), text)


if __name__ == "__main__":
    harness.main()
