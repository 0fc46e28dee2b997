"""Scoring of the MBPP study (experiments/mbpp/scoring): verdicts, and programs that attack it.

Environment: HEADRACE_STUDY_PYTHON, a Python with experiments/mbpp/requirements-scoring.txt;
default: this Python, then that of build/mbpp/venv-scoring.
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import harness

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
STUDY = REPOSITORY / "experiments" / "mbpp"
sys.path.insert(0, str(STUDY))
from scoring import journal, sandbox  # noqa: E402

OK, USAGE, BAD_INPUT, UNAVAILABLE, IO, TRY_AGAIN = 0, 2, 65, 69, 74, 75
RIGHT = "def f(x):\n    return x + 1\n"
WRONG = "def f(x):\n    return x + 2\n"
WRONG_LATER = "def f(x):\n    return 2 if x == 1 else 0\n"  # passes the base test
SECRET = "HEADRACE_SECRET"


def find_python():
    """A Python that has EvalPlus; skips the test where there is none."""
    for python in (os.environ.get("HEADRACE_STUDY_PYTHON"), sys.executable,
                   REPOSITORY / "build" / "mbpp" / "venv-scoring" / "bin" / "python"):
        python = shutil.which(python) if python else None
        if python and subprocess.run([python, "-c", "import evalplus, pyseccomp"],
                                     capture_output=True).returncode == 0:
            return python
    raise unittest.SkipTest("no Python has experiments/mbpp/requirements-scoring.txt "
                            "(HEADRACE_STUDY_PYTHON, build/mbpp/venv-scoring)")


def need_bubblewrap():
    if not shutil.which("bwrap"):
        raise unittest.SkipTest("bubblewrap (bwrap) is not installed")
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true"]
    trial = subprocess.run(command, capture_output=True, text=True)
    if trial.returncode != 0:
        raise unittest.SkipTest(f"bubblewrap does not work here: {trial.stderr.strip()}")


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def stat_of(pid):
    """What /proc says after the name: state, parent, ..."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["gone", "0"]


def alive(pid):
    return stat_of(pid)[0] not in ("gone", "Z", "X")


def children(pid):
    return [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")
            if stat_of(path.name)[1] == str(pid)]


class ScoringTest(unittest.TestCase):
    """A folder with an MBPP+ file of tasks Mbpp/9000 and up: f(x) is x + 1."""
    TASKS = 100
    port = 0

    @classmethod
    def setUpClass(cls):
        cls.python = find_python()
        cls.root = tempfile.TemporaryDirectory(prefix="headrace-scoring-")
        cls.addClassCleanup(cls.root.cleanup)
        cls.folder = pathlib.Path(cls.root.name)
        cls.data = cls.folder / "data.jsonl"
        cls.work = cls.folder / "work"
        write_lines(cls.data, [{
            "task_id": f"Mbpp/{9000 + number}", "prompt": '"""Add one."""\n', "entry_point": "f",
            "canonical_solution": RIGHT, "base_input": [[1]], "plus_input": [[2], [-5]],
            "contract": "", "assertion": "assert f(1) == 2", "atol": 0}
            for number in range(cls.TASKS)])

    @classmethod
    def command(cls, texts, *options, name="a"):
        generations = cls.folder / f"{name.replace('/', '-')}-generations.jsonl"
        write_lines(generations, [{"task_id": f"Mbpp/{9000 + number}", "sample": 0, "text": text}
                                  for number, text in enumerate(texts)])
        return [cls.python, "-m", "scoring.score", "--data", cls.data, "--generations", generations,
                "--output", cls.folder / f"{name}.jsonl", "--work", cls.work, *options]

    @classmethod
    def start(cls, command, **environment):
        return subprocess.Popen([str(part) for part in command], cwd=STUDY, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, env={**os.environ, **environment})

    @classmethod
    def score(cls, command, expect=OK, **environment):
        """(verdicts, what was said)"""
        with cls.start(command, **environment) as process:
            said = process.communicate(timeout=300)[0]
        if process.returncode != expect:
            raise AssertionError(f"exit code {process.returncode}, not {expect}\n{said}")
        output = pathlib.Path(command[command.index("--output") + 1])
        return read_lines(output) if expect == OK else None, said

    @classmethod
    def attacker(cls, name):
        text = (HERE / "hostile" / f"{name}.py").read_text()
        for place, value in (("@FOLDER@", cls.folder), ("@WORK@", cls.work),
                             ("@SCORING@", STUDY / "scoring"), ("@PORT@", cls.port)):
            text = text.replace(place, str(value))
        return text

    def statuses(self, verdicts):
        return [(verdict["base"], verdict["plus"]) for verdict in verdicts]


class Verdicts(ScoringTest):
    @classmethod
    def setUpClass(cls):
        need_bubblewrap()
        super().setUpClass()

    def test_right_and_wrong(self):
        chatter = f"Some words.\n{RIGHT}\nprint(f(1))\n```\nMore words."
        helper = "def g(x):\n    return x + 1\n\ndef f(x):\n    return g(x)\n"
        other = "def g(x):\n    return x + 1\n"
        texts = [RIGHT, WRONG, WRONG_LATER, chatter, helper, "", "def f(x)", other]
        verdicts, said = self.score(self.command(texts, name="verdicts"))
        good, bad, later = ("pass", "pass"), ("fail", "fail"), ("pass", "fail")
        expected = [good, bad, later, good, good, bad, bad, bad]
        self.assertEqual(expected, self.statuses(verdicts), said)
        self.assertEqual([f"Mbpp/{9000 + number}" for number in range(len(texts))],
                         [verdict["task_id"] for verdict in verdicts])
        self.assertEqual(RIGHT.strip(), verdicts[3]["solution"])
        self.assertIn("of 8 pass 4 the base tests, 3 these and the plus tests", said)
        record = json.loads((self.folder / "scoring.json").read_text())
        self.assertEqual("0.3.1", record["evalplus"])
        self.assertRegex(record["sandbox"], r"^bubblewrap \d")
        self.assertEqual(4 << 30, record["limits"]["memory_bytes"])
        self.assertEqual("evalplus.sanitize", record["sanitiser"])

    def test_texts_that_the_sanitiser_cannot_read(self):
        texts = [RIGHT, "def f(x):\n    return x + 1\0\n", "x = '\ud800'\n" + RIGHT,
                 "(" * 20000 + RIGHT, "f = " + "-" * 50000 + "1", RIGHT]
        verdicts, said = self.score(self.command(texts, name="unreadable"))
        statuses = self.statuses(verdicts)
        self.assertEqual(("pass", "pass"), statuses[0], said)
        self.assertEqual(("pass", "pass"), statuses[-1], said)
        self.assertEqual({("fail", "fail")}, set(statuses[1:-1]), verdicts)

    def test_goes_on_where_it_was_killed(self):
        texts = [RIGHT + f"# {number}\n" for number in range(20)]
        command = self.command(texts, "--jobs", 1, "--as-is", name="killed")
        book = self.work / "verdicts.jsonl"
        before = book.read_bytes().count(b"\n") if book.exists() else 0
        with self.start(command) as process:
            while not book.exists() or book.read_bytes().count(b"\n") < before + 3:
                self.assertIsNone(process.poll())
                time.sleep(0.05)
            said = self.score(command, expect=TRY_AGAIN)[1]
            self.assertIn("another scoring is at work", said)
            process.kill()
        with open(book, "ab") as file:
            file.write(b'{"key": "torn')
        kept = book.read_bytes().count(b"\n") - before
        verdicts, said = self.score(command)
        self.assertIn(f"20 generations, {20 - kept} programs to score", said)
        self.assertEqual([("pass", "pass")] * 20, self.statuses(verdicts))
        self.assertEqual(verdicts, self.score(command)[0])
        self.assertIn("20 programs to score", self.score([*command, "--min-time-limit", 2])[1])

    def test_nothing_runs_on_when_it_is_stopped(self):
        looping = self.attacker("endless_loop_that_swallows")
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM),
                             (signal.SIGKILL, -signal.SIGKILL)):
            with self.subTest(signal=number):
                command = self.command([looping, looping], "--jobs", 2, "--as-is", name="stopped")
                with self.start(command) as process:
                    while len(children(process.pid)) < 2:
                        self.assertIsNone(process.poll())
                        time.sleep(0.02)
                    sandboxes = children(process.pid)
                    process.send_signal(number)
                    self.assertEqual(code, process.wait(60))
                deadline = time.monotonic() + 60
                while any(alive(pid) for pid in sandboxes):
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.02)

    def test_equal_texts_are_scored_once(self):
        command = self.command([RIGHT], name="once")
        generations = command[command.index("--generations") + 1]
        text = RIGHT + "# once\n"
        write_lines(generations, [{"task_id": "Mbpp/9000", "sample": sample, "text": text}
                                  for sample in range(4)])
        verdicts, said = self.score(command)
        self.assertIn("4 generations, 1 programs to score", said)
        self.assertEqual([0, 1, 2, 3], [verdict["sample"] for verdict in verdicts])


class Golden(ScoringTest):
    """Some of Qwen's published generations and verdicts; golden.md has all, and the reasons."""
    # EvalPlus got an oracle for these after Qwen had its verdicts.
    SINCE = {"Mbpp/2": ("pass", "pass"), "Mbpp/232": ("pass", "fail"),
             "Mbpp/249": ("pass", "fail"), "Mbpp/579": ("pass", "pass")}
    # Tasks with a special oracle or with inputs of types that JSON has not.
    SPECIAL = (7, 63, 75, 106, 111, 115, 124, 140, 164, 252, 278, 295, 307, 558, 580, 581, 722, 769)
    TOO_SLOW = ("Mbpp/255", "Mbpp/599")

    @classmethod
    def setUpClass(cls):
        need_bubblewrap()
        super().setUpClass()
        shared = pathlib.Path(os.environ.get("HEADRACE_SHARED", "/nowhere")) / "data"
        cls.published = shared / "qwen-mbpp" / "1.5b-generated_eval_results.json"
        cls.source = shared / "mbpp" / "MbppPlus-v0.1.0.jsonl"
        if not cls.published.exists() or not cls.source.exists():
            raise unittest.SkipTest("Qwen's published generations, or MBPP+ v0.1.0, are not there")

    def test_verdicts_are_the_published_ones(self):
        samples = {task: each[0] for task, each in
                   json.loads(self.published.read_text())["eval"].items()}
        tasks = {*sorted(samples)[::16], *self.SINCE, *(f"Mbpp/{each}" for each in self.SPECIAL)}
        tasks = sorted((tasks & samples.keys()) - {*self.TOO_SLOW})
        write_lines(self.data, [each for each in read_lines(self.source)
                                if each["task_id"] in tasks])
        command = self.command([], "--as-is", "--jobs", 2, "--min-time-limit", 10, name="golden")
        write_lines(command[command.index("--generations") + 1], [
            {"task_id": task, "sample": 0, "text": samples[task]["solution"]} for task in tasks])
        verdicts, said = self.score(command)
        published = {task: (samples[task]["base_status"], samples[task]["plus_status"])
                     for task in tasks}
        self.assertGreater(len(tasks), 30)
        self.assertEqual({**published, **self.SINCE}, dict(zip(tasks, self.statuses(verdicts))))


class Refusals(ScoringTest):
    def path_with(self, name, text):
        """A PATH that holds nothing, or a bwrap of its own."""
        tools = self.folder / f"tools-{name}"
        tools.mkdir()
        if text:
            (tools / "bwrap").write_text(text)
            (tools / "bwrap").chmod(0o755)
        return str(tools)

    def test_no_bubblewrap(self):
        path = self.path_with("none", None)
        command = self.command([RIGHT, WRONG], name="bare")
        said = self.score(command, expect=UNAVAILABLE, PATH=path)[1]
        self.assertIn("bubblewrap (bwrap) is not installed; on Debian: apt-get install", said)
        self.assertFalse((self.folder / "bare.jsonl").exists())
        verdicts, said = self.score([*command, "--allow-unsafe-scoring"], PATH=path)
        self.assertIn("NOT SAFE", said)
        self.assertEqual([("pass", "pass"), ("fail", "fail")], self.statuses(verdicts))
        record = json.loads((self.folder / "scoring.json").read_text())
        self.assertEqual("none (--allow-unsafe-scoring)", record["sandbox"])

    def test_bubblewrap_that_may_not(self):
        path = self.path_with("refused", "#!/bin/sh\n[ $1 = --version ] && exit\n"
                                         "echo 'bwrap: Creating new namespace failed: "
                                         "Permission denied' >&2\nexit 1\n")
        said = self.score(self.command([RIGHT]), expect=UNAVAILABLE, PATH=path)[1]
        self.assertIn("Creating new namespace failed", said)
        self.assertIn("user namespaces", said)

    def test_bubblewrap_that_holds_nothing(self):
        """One that runs the command as it is."""
        path = self.path_with("open", '#!/bin/sh\n[ "$1" = --version ] && exit\n'
                              'while [ "$1" != -- ]; do\n'
                              '  if [ "$1" = --setenv ]; then export "$2=$3"; fi\n  shift\ndone\n'
                              'shift\nexec "$@"\n')
        said = self.score(self.command([RIGHT]), expect=UNAVAILABLE, PATH=path)[1]
        self.assertIn("bwrap does not hold: ", said)
        self.assertIn("files of the host are seen", said)

    def test_bad_files(self):
        good = {"task_id": "Mbpp/9000", "sample": 0, "text": ""}
        for lines, message in (
                (["{"], ":1: not JSON"), ([[]], ":1: not a JSON object"), ([], "no generations"),
                ([good, {**good, "task_id": "Mbpp/1"}], ":2: the data file has no task Mbpp/1"),
                ([good, good], ":2: sample 0 of Mbpp/9000 is there already"),
                ([{**good, "text": None}], ":1: needs task_id and text"),
                ([{**good, "sample": "0"}], ":1: needs task_id and text")):
            with self.subTest(message=message):
                command = self.command([], name="bad")
                path = command[command.index("--generations") + 1]
                path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n"
                                        for line in lines))
                self.assertIn(f"{path}", self.score(command, expect=BAD_INPUT)[1])
                self.assertIn(message, self.score(command, expect=BAD_INPUT)[1])
        command = self.command([RIGHT])
        command[command.index("--data") + 1] = "/nowhere"
        self.assertIn("/nowhere: No such file", self.score(command, expect=BAD_INPUT)[1])
        for task, message in (({"task_id": "Mbpp/9000"}, ":1: not a task of MBPP+ (no prompt, "),
                              ({**read_lines(self.data)[0], "canonical_solution": "def g(): pass"},
                               "the reference solutions do not run through")):
            data = self.folder / "bad-data.jsonl"
            write_lines(data, [task])
            command[command.index("--data") + 1] = data
            self.assertIn(f"{data}", self.score(command, expect=BAD_INPUT)[1])
            self.assertIn(message, self.score(command, expect=BAD_INPUT)[1])
        self.score(self.command([RIGHT], "--jobs", 0), expect=USAGE)
        said = self.score(self.command([RIGHT], name="nowhere/x"), expect=IO)[1]
        self.assertIn("the folder is not there", said)

    def test_no_evalplus(self):
        """Said as such, not as a sandbox that is missing, which could be done without."""
        bare = self.folder / "bare-python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
        command = self.command([RIGHT], "--allow-unsafe-scoring")
        said = self.score([bare / "bin" / "python", *command[1:]], expect=UNAVAILABLE)[1]
        self.assertIn("No module named", said)
        self.assertIn("-r requirements-scoring.txt", said)
        self.assertNotIn("sandbox", said)


class Hostile(ScoringTest):
    """All attackers in one run, right programs between them."""

    @classmethod
    def setUpClass(cls):
        need_bubblewrap()
        super().setUpClass()
        (cls.folder / "secret").write_text(SECRET)
        cls.listener = socket.create_server(("127.0.0.1", 0))
        cls.port = cls.listener.getsockname()[1]
        cls.local = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        cls.local[0].bind(f"{cls.folder}/listener")
        cls.local[1].bind("\0headrace-scoring-test")
        for each in (cls.listener, *cls.local):
            cls.addClassCleanup(each.close)
            each.listen()
            each.setblocking(False)
        cls.names = sorted(path.stem for path in (HERE / "hostile").glob("*.py")
                           if path.stem != "hang_the_judge")
        cls.before = cls.outside()
        texts = [text for name in cls.names for text in (cls.attacker(name), RIGHT)]
        cls.scored, cls.said = cls.score(
            cls.command(texts, "--as-is", "--jobs", 2, name="hostile"), **{SECRET: SECRET})
        cls.verdicts = dict(zip(cls.names, cls.scored[::2]))
        cls.reached = [each for each in (cls.listener, *cls.local) if cls.was_reached(each)]

    @staticmethod
    def was_reached(listener):
        try:
            listener.accept()[0].close()
            return True
        except BlockingIOError:
            return False

    @classmethod
    def outside(cls):
        """What a program could have left: files, by name."""
        show = "import evalplus; print(evalplus.__path__[0])"
        packages = subprocess.run([cls.python, "-c", show], capture_output=True, text=True,
                                  check=True).stdout.strip()
        places = (cls.folder, packages, STUDY / "scoring", "/usr/lib", "/etc", "/", "/dev")
        return [(str(place), pathlib.Path(place, "hostile-was-here").exists()) for place in places]

    def test_every_attacker_fails(self):
        self.assertGreater(len(self.names), 15)
        for name, verdict in self.verdicts.items():
            with self.subTest(attacker=name):
                self.assertNotEqual("pass", verdict["base"], verdict)
                self.assertNotEqual("pass", verdict["plus"], verdict)

    def test_the_verdicts_of_others_stand(self):
        others = self.scored[1::2]
        self.assertEqual([("pass", "pass")] * len(self.names), self.statuses(others))

    def test_attackers_are_held_and_not_only_unlucky(self):
        """They came to their end: no crash of the sandbox hides what they would have done."""
        for name in ("allocate", "daemon", "fill_disk", "fork_bomb", "kill_parent", "reach_parent",
                     "read_host", "socket_out", "thread_bomb", "write_outside"):
            with self.subTest(attacker=name):
                self.assertEqual("fail", self.verdicts[name]["base"])
                self.assertNotIn("note", self.verdicts[name])

    def test_host_is_unharmed(self):
        self.assertEqual(self.before, self.outside())
        self.assertEqual(SECRET, (self.folder / "secret").read_text())
        self.assertEqual([], self.reached)

    def test_nothing_runs_on(self):
        left = []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                self.assertNotEqual("hostile-daemon", (path / "comm").read_text().strip())
                command = (path / "cmdline").read_text()
                # A sandbox of ours has a task of ours, and so has what runs in it.
                if "scoring.runner" in command and self.folder.name in \
                        command + (path / "mountinfo").read_text():
                    left.append(command)
            except OSError:
                continue
        self.assertEqual([], left)

    def test_output_is_not_kept(self):
        self.assertLess(len(self.said), 20000)
        self.assertLess((self.folder / "hostile.jsonl").stat().st_size, 1 << 20)

    def test_attackers_can_do_harm_without_the_sandbox(self):
        """So the verdicts above are the sandbox's doing. Only what harms nothing is tried."""
        box = sandbox.Sandbox(confined=False, python=self.python)
        task = self.references() / "Mbpp_9000.pickle"
        for name in ("read_host", "socket_out"):
            with self.subTest(attacker=name):
                order = {"step": "candidate", "text": self.attacker(name), "sanitize": False}
                self.assertEqual("pass", box.run(order, task=task).last("base")["base"])

    def test_a_verdict_can_be_forged_where_its_memory_stays_open(self):
        """So it is for want of the descriptor that forge_shared_memory fails, not by mistake."""
        order = {"step": "candidate", "text": self.attacker("forge_shared_memory"),
                 "sanitize": False, "task": str(self.references() / "Mbpp_9000.pickle"),
                 "limits": sandbox.LIMITS, "confined": False}
        for drop, forged in (("confine._drop_descriptors", False), ("lambda *_: None", True)):
            with self.subTest(drop=drop):
                code = ("from scoring import confine, runner\n"
                        f"confine._drop_descriptors = {drop}\nrunner.main()")
                done = subprocess.run([self.python, "-s", "-B", "-c", code, "1"], cwd=STUDY,
                                      input=json.dumps(order), capture_output=True, text=True,
                                      timeout=200)
                verdict = json.loads(done.stdout.splitlines()[-1])
                self.assertEqual(forged, verdict["base"] == "pass", done.stderr)

    def test_a_judge_that_hangs_is_stopped(self):
        box = sandbox.Sandbox({"wall_seconds": 10}, python=self.python)
        task = self.references() / "Mbpp_9000.pickle"
        outcome = box.run({"step": "candidate", "sanitize": False,
                           "text": self.attacker("hang_the_judge")}, task=task)
        self.assertEqual([{"ready": True}], outcome.messages)
        self.assertEqual("stopped after 10 s", outcome.ended)

    def references(self):
        return next(self.work.glob("references-*"))


class Journals(unittest.TestCase):
    def test_lines_that_are_damaged_do_not_count(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "verdicts.jsonl"
            path.write_bytes(b'{"key": "a", "verdict": 1}\n[]\n{}\n\xff\n{"key": "b", "verd')
            with journal.Journal(path) as book:
                self.assertEqual({"a": 1}, book.verdicts)
                book.add("c", 3)
                with self.assertRaises(journal.Busy):
                    journal.Journal(path)
            with journal.Journal(path) as book:
                self.assertEqual({"a": 1, "c": 3}, book.verdicts)

    def test_a_key_holds_all_that_a_verdict_depends_on(self):
        keys = {journal.key(settings, task, text) for settings in ({}, {"a": 1})
                for task in ("x", "y") for text in ("", "y")}
        self.assertEqual(8, len(keys))


if __name__ == "__main__":
    harness.main()
