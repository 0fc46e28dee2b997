"""experiments/mbpp/endpoint.py against a server that does what servers do wrong.

Needs the environment that "experiments/mbpp/reproduce.sh --prepare" makes.
"""
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import harness

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STUDY = REPOSITORY / "experiments" / "mbpp"
PYTHON = REPOSITORY / "build" / "mbpp" / "venv" / "bin" / "python"
sys.path.insert(0, str(STUDY))
from study import data, metrics

OK, SOME_FAILED, USAGE, BAD_FILE, UNAVAILABLE, AGAIN = 0, 1, 2, 65, 69, 75
KEY = "sk-test-0123456789abcdef"


def completion(text="def f():\n    return 1", finish="stop", tokens=7):
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None}],
            "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}}


def chat_completion(text="Sure.\n```python\ndef f(): return 1\n```", tokens=9):
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                         "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}}


def google_error(status, details, as_list=True):
    """The shape of Google's OpenAI-compatible endpoint: a list with one error in it."""
    error = {"error": {"code": status, "message": "Resource exhausted", "details": details}}
    return [error] if as_list else error


def retry_info(delay):
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


class Server:
    """Answers the nth request (from 0) by script(n, body): (status, object or bytes[, headers]),
    or a function that is given the handler."""

    def __init__(self, script):
        self.bodies, self.keys, self.together, self.most_together = [], [], 0, 0
        lock, outer = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer.together += 1
                    outer.most_together = max(outer.most_together, outer.together)
                try:
                    self.answer(script(number, body))
                finally:
                    with lock:
                        outer.together -= 1

            def answer(self, said):
                if callable(said):
                    said(self)
                    return
                status, content, *more = said
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json",
                                    "Content-Length": str(len(content)), **dict(*more)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that went away is what tests do
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def cut(handler):
    """Half of an answer, then the connection is gone."""
    content = json.dumps(completion()).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:len(content) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def stuck(handler):
    """No answer for longer than the client waits."""
    time.sleep(12)
    handler.answer((200, completion()))


class EndpointTest(unittest.TestCase):
    def setUp(self):
        if not PYTHON.exists():
            self.skipTest("run experiments/mbpp/reproduce.sh --prepare: no build/mbpp/venv")
        shared = harness.shared_file("data/mbpp/MbppPlus-v0.2.0.jsonl")
        folder = tempfile.TemporaryDirectory(prefix="headrace-endpoint-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.data, self.output = shared, self.folder / "out.jsonl"

    def serve(self, script):
        server = Server(script)
        self.addCleanup(server.close)
        return server

    def command(self, server, tasks=1, concurrency=1, api="completions", *more):
        return [str(word) for word in (
            PYTHON, STUDY / "endpoint.py", "--base-url", server.url, "--model", "m", "--label", "l",
            "--api", api, "--concurrency", concurrency, "--tasks", tasks, "--data", self.data,
            "--output", self.output, *more)]

    def call(self, server, *arguments, expect=OK, key=KEY):
        environment = {**os.environ, "OPENAI_API_KEY": key, "OPENAI_LOG": "debug"}
        done = subprocess.run(self.command(server, *arguments), env=environment, timeout=120,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        said = done.stdout + done.stderr
        self.assertEqual(expect, done.returncode, said)
        self.assertNotIn(KEY, said)
        if self.output.exists():
            self.assertNotIn(KEY, self.output.read_text())
        return said

    def records(self):
        return data.read_json_lines(self.output)[1:]

    def one_after(self, failure, *more, **expected):
        """The record of a request whose first attempt fails in the given way."""
        server = self.serve(lambda number, _: failure if number == 0 else (200, completion()))
        self.call(server, 1, 1, "completions", *more)
        record, = self.records()
        self.assertEqual(2, record["attempts"])
        self.assertEqual(completion()["choices"][0]["text"], record["text"])
        self.assertEqual([expected["kind"]], [f["kind"] for f in record["failures"]])
        return record


class Requests(EndpointTest):
    def test_completions_are_the_study_s_own(self):
        server = self.serve(lambda *_: (200, completion()))
        self.call(server, 1, 1, "completions", "--system", "You are S.")
        body, = server.bodies
        self.assertTrue(body["prompt"].startswith(
            "<|im_start|>system\nYou are S.<|im_end|>\n<|im_start|>user\nPlease provide"))
        self.assertTrue(body["prompt"].endswith(
            "<|im_start|>assistant\nBelow is a Python script with a self-contained function that "
            "solves the problem and passes corresponding tests:\n```python\n"))
        self.assertEqual((0, 768), (body["temperature"], body["max_tokens"]))
        self.assertIn("\n```\n", body["stop"])
        self.assertEqual([f"Bearer {KEY}"], server.keys)
        record, = self.records()
        self.assertEqual({"prompt_tokens": 5, "completion_tokens": 7}, record["usage"])

    def test_chat_has_no_prefill_and_no_stops(self):
        server = self.serve(lambda *_: (200, chat_completion()))
        self.call(server, 1, 1, "chat")
        body, = server.bodies
        self.assertEqual(["system", "user"], [m["role"] for m in body["messages"]])
        self.assertNotIn("stop", body)
        self.assertIn("```python", self.records()[0]["text"])

    def test_more_parameters(self):
        server = self.serve(lambda *_: (200, completion()))
        more = ("--parameters", '{"repeat_penalty": 1}')
        self.call(server, 1, 1, "completions", *more)
        self.assertEqual(1, server.bodies[0]["repeat_penalty"])
        self.assertEqual({"repeat_penalty": 1}, data.read_json_lines(self.output)[0]["parameters"])
        self.assertIn("other requests", self.call(server, 1, expect=BAD_FILE))
        self.assertIn("--parameters", self.call(server, 1, 1, "completions", "--parameters", "[1]",
                                                expect=USAGE))

    def test_as_many_at_once_as_asked_for(self):
        def script(_, body):
            time.sleep(0.3)
            return 200, completion()
        server = self.serve(script)
        self.call(server, 12, 4)
        self.assertEqual(4, server.most_together)
        self.assertEqual(12, len(self.records()))

    def test_key_comes_from_the_environment_only(self):
        server = self.serve(lambda *_: (200, completion()))
        self.assertIn("OPENAI_API_KEY", self.call(server, expect=BAD_FILE, key=" "))
        self.assertEqual([], server.bodies)

    def test_address_with_a_key_in_it_is_refused(self):
        server = self.serve(lambda *_: (200, completion()))
        for address in ("http://u:p@localhost/v1", "http://localhost/v1?key=1"):
            self.call(server, 1, 1, "completions", "--base-url", address, expect=USAGE)


class Failures(EndpointTest):
    def test_429_with_retry_info(self):
        for as_list in (True, False):
            with self.subTest(as_list=as_list):
                self.output.unlink(missing_ok=True)
                record = self.one_after((429, google_error(429, [retry_info("0.25s")], as_list)),
                                        kind="429")
                self.assertEqual(0.25, record["waited_s"])
                self.assertGreaterEqual(record["ended"] - record["started"], 0.25)

    def test_429_with_retry_after(self):
        record = self.one_after((429, {"error": {"message": "slow down"}}, {"Retry-After": "0.5"}),
                                kind="429")
        self.assertEqual(0.5, record["waited_s"])

    def test_429_that_asks_for_too_long_is_given_up(self):
        server = self.serve(lambda *_: (429, google_error(429, [retry_info("3600s")])))
        self.call(server, expect=SOME_FAILED)
        record, = self.records()
        self.assertEqual((None, 1, 0), (record["text"], record["attempts"], record["waited_s"]))

    def test_daily_quota_ends_the_run(self):
        quota = {"@type": "type.googleapis.com/google.rpc.QuotaFailure",
                 "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}
        server = self.serve(lambda *_: (429, google_error(429, [quota, retry_info("1s")])))
        self.call(server, 5, expect=AGAIN)
        self.assertEqual(1, len(server.bodies))

    def test_503(self):
        for status in (503, 529):  # as some hosts say that they are overloaded
            with self.subTest(status=status):
                self.output.unlink(missing_ok=True)
                self.one_after((status, {"error": {"message": "overloaded"}}), kind=str(status))

    def test_slow(self):
        self.one_after(stuck, "--timeout", 5, kind="timeout")

    def test_cut(self):
        self.one_after(cut, kind="connection")

    def test_malformed(self):
        for content in (b"{\"choices\": [", b"[]", b"{}", b"<html>", b"null",
                        json.dumps({**completion(), "choices": []}).encode()):
            with self.subTest(content=content):
                self.output.unlink(missing_ok=True)
                self.one_after((200, content), kind="malformed")

    def test_no_usage_is_a_failure(self):
        server = self.serve(lambda *_: (200, {**completion(), "usage": None}))
        self.call(server, expect=SOME_FAILED)
        self.assertEqual("no usage", self.records()[0]["failures"][0]["kind"])

    def test_attempts_are_bounded(self):
        server = self.serve(lambda *_: (500, {"error": {"message": "no"}}, {"Retry-After": "0"}))
        self.call(server, 2, 1, "completions", "--attempts", 3, expect=SOME_FAILED)
        self.assertEqual(6, len(server.bodies))
        self.assertEqual([3, 3], [record["attempts"] for record in self.records()])

    def test_bad_request_is_not_repeated(self):
        server = self.serve(lambda number, _: (400, {"error": {"message": "no"}}) if number == 0
                            else (200, completion()))
        self.call(server, 2, expect=SOME_FAILED)
        self.assertEqual(2, len(server.bodies))

    def test_refused_key_ends_the_run_and_is_not_shown(self):
        server = self.serve(lambda *_: (401, {"error": {"message": f"Incorrect API key: {KEY}"}}))
        said = self.call(server, 5, expect=UNAVAILABLE)
        self.assertIn("Incorrect API key: [key]", said)
        self.assertEqual(1, len(server.bodies))


class Resume(EndpointTest):
    def test_goes_on_and_tries_failed_requests_again(self):
        first = self.serve(lambda number, _: (400, {"error": {"message": "no"}}) if number == 1
                           else (200, completion()))
        self.call(first, 3, expect=SOME_FAILED)
        with open(self.output, "ab") as file:
            file.write(b'{"task_id": "Mbpp/4", "te')  # torn
        second = self.serve(lambda *_: (200, completion("again")))
        # The same endpoint, though the test's server has another port.
        self.call(second, 3)
        self.assertEqual(1, len(second.bodies))
        self.assertEqual([1, 1, 1, 2], [record["session"] for record in self.records()])
        speed = metrics.endpoint_speed(data.read_json_lines(self.output))
        self.assertEqual((3, 3, 0, 1, 2, 21), tuple(speed[key] for key in (
            "requests", "done", "failed", "failed_attempts", "sessions", "generated")))

    def test_other_requests_are_refused(self):
        server = self.serve(lambda *_: (200, completion()))
        self.call(server, 1)
        self.assertIn("other requests", self.call(server, 2, expect=BAD_FILE))

    def test_stopped_and_killed(self):
        for number, expect in ((signal.SIGTERM, AGAIN), (signal.SIGKILL, -signal.SIGKILL)):
            with self.subTest(number=number):
                self.output.unlink(missing_ok=True)
                reached = threading.Event()

                def script(request, _):
                    if request >= 2:
                        reached.set()
                        time.sleep(2)
                    return 200, completion()
                process = subprocess.Popen(self.command(self.serve(script), 4, 1),
                                           env={**os.environ, "OPENAI_API_KEY": KEY},
                                           stderr=subprocess.DEVNULL)
                self.assertTrue(reached.wait(60))
                process.send_signal(number)
                self.assertEqual(expect, process.wait(60))
                self.assertEqual(2, len(self.records()))
                rest = self.serve(lambda *_: (200, completion()))
                self.call(rest, 4)
                self.assertEqual(2, len(rest.bodies))


if __name__ == "__main__":
    harness.main()
