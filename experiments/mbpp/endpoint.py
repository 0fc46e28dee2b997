#!/usr/bin/env python3
"""The requests of the study against a model behind an OpenAI-compatible endpoint.

  experiments/mbpp/endpoint.py --base-url URL --model NAME --label NAME --api chat \\
      --concurrency 4 --data MbppPlus.jsonl --output c4.jsonl

An endpoint has no batch size: the number of requests that this client has under way stands in for
it. --api chat sends what EvalPlus sends to hosted models (no prefill, no stop strings); --api
completions sends the study's own prompts, prefill and stops, in the ChatML format.
The key is read from the environment variable that --key-variable names, and is never printed or
written. Started again with the same options, it goes on where it stopped.

Gemini: --base-url https://generativelanguage.googleapis.com/v1beta/openai/ --api chat
        --key-variable GEMINI_API_KEY

Exit codes: 0 all requests have answers; 1 some failed; 2 usage; 65 a bad file; 69 the endpoint
refuses the key or the model; 75 stopped, or out of quota: start it again.
"""
import argparse
import asyncio
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
import urllib.parse

os.environ.pop("OPENAI_LOG", None)  # it would print requests
import openai

from study import attempts, data, journal, prompts

OK, SOME_FAILED, USAGE, BAD_FILE, UNAVAILABLE, AGAIN = 0, 1, 2, 65, 69, 75


def say(text):
    print(f"endpoint: {text}", file=sys.stderr, flush=True)


class Fatal(Exception):
    def __init__(self, failure):
        super().__init__(failure.message)
        self.failure = failure


def parameters_of(task, options):
    """The arguments of the client's call."""
    body = prompts.request(task, draw=0, sampled=False)["body"]
    messages = body.pop("messages")
    if options.api == "completions":
        return {**body, "prompt": prompts.chatml(messages, options.system)}
    del body["stop"]
    return {**body, "messages": prompts.hosted_messages(task)}


async def ask(client, parameters, options):
    """(text, finish reason, usage) of one attempt."""
    calls = client.completions if options.api == "completions" else client.chat.completions
    answer = await calls.create(model=options.model, extra_body=options.parameters, **parameters)
    try:
        choice = answer.choices[0]
        text = choice.text if options.api == "completions" else choice.message.content or ""
        finish, usage = choice.finish_reason, answer.usage
        if not isinstance(text, str) or not isinstance(finish, str):
            raise attempts.Malformed("the answer has no text or no finish_reason")
    except (AttributeError, IndexError, TypeError) as error:
        raise attempts.Malformed(f"the answer is no completion ({error})") from None
    if not usage or not isinstance(usage.completion_tokens, int):
        raise attempts.NoUsage("the answer has no usage, so its tokens are not known")
    return text, finish, {"prompt_tokens": usage.prompt_tokens,
                          "completion_tokens": usage.completion_tokens}


class Caller:
    """Makes attempts at one request until one succeeds or there are no more."""

    def __init__(self, client, options, key):
        self._client, self._options, self._key = client, options, key
        self._policy = options.policy

    async def call(self, task, session):
        """The request's line of the journal."""
        parameters = parameters_of(task, self._options)
        started, failures, answer = time.time(), [], None
        for attempt in range(1, self._policy.attempts + 1):
            begin = time.monotonic()
            try:
                answer = await asyncio.wait_for(ask(self._client, parameters, self._options),
                                                self._policy.timeout_s)
                break
            except Exception as error:  # what a client and a server can do wrong together is open
                failure = self._judge(error)
            last = failure.action != attempts.TRY_AGAIN or attempt == self._policy.attempts
            wait = 0.0 if last else failure.wait_s(self._policy, attempt)
            failures.append({"kind": failure.kind, "message": failure.message, "waited_s": wait})
            if failure.action == attempts.FATAL:
                raise Fatal(failure)
            if last:
                break
            await asyncio.sleep(wait)
        text, finish, usage = answer or (None, None, None)
        return {"task_id": task.task_id, "draw": 0, "session": session, "text": text,
                "finish": finish, "usage": usage,
                "latency_s": round(time.monotonic() - begin, 4) if answer else None,
                "attempts": len(failures) + (answer is not None), "failures": failures,
                "waited_s": sum(failure["waited_s"] for failure in failures),
                "started": round(started, 3), "ended": round(time.time(), 3)}

    def _judge(self, error):
        if isinstance(error, asyncio.TimeoutError):
            return attempts.Failure("timeout", f"no answer in {self._policy.timeout_s} s",
                                    attempts.TRY_AGAIN)
        failure = attempts.failure_of(error, self._policy)
        return dataclasses.replace(failure,
                                   message=attempts.without(self._key, failure.message))


async def worker(requests, caller, book):
    """One of as many as requests are under way at once; they share the iterator."""
    for task in requests:
        record = await caller.call(task, book.session)
        book.add(record)
        if record["text"] is None:
            say(f"{task.task_id} failed: {record['failures'][-1]['kind']}: "
                f"{record['failures'][-1]['message']}")


async def run(options, key, tasks, book):
    missing = [task for task in tasks if (task.task_id, 0) not in book.done]
    say(f"{len(missing)} requests at concurrency {options.concurrency}, {len(book.done)} are done")
    # Attempts are bounded here, so the client makes one at a time.
    async with openai.AsyncOpenAI(api_key=key or "none", base_url=options.base_url, max_retries=0,
                                  timeout=options.policy.timeout_s) as client:
        caller, requests = Caller(client, options, key), iter(missing)
        workers = [asyncio.create_task(worker(requests, caller, book))
                   for _ in range(options.concurrency)]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: [task.cancel() for task in workers])
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def header_of(options):
    header = {"label": options.label, "model": options.model, "api": options.api,
              "concurrency": options.concurrency, "tasks": options.tasks,
              "host": urllib.parse.urlsplit(options.base_url).hostname}
    return {**header, "parameters": options.parameters} if options.parameters else header


def all_done(options, tasks):
    book = data.read_json_lines(options.output)[1:]
    answered = [record for record in journal.latest(book).values() if record["text"] is not None]
    failed = len(tasks) - len(answered)
    say(f"{len(answered)} requests have answers, {failed} failed; {options.output}")
    return OK if not failed else SOME_FAILED


def json_object(text):
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def parse(arguments):
    parser = argparse.ArgumentParser(prog="endpoint.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True, help="as the endpoint names it")
    parser.add_argument("--label", required=True, help="as the report names it")
    parser.add_argument("--api", choices=("chat", "completions"), required=True)
    parser.add_argument("--system", default="", help="completions: the chat template's default "
                        "system message")
    parser.add_argument("--parameters", type=json_object, default={}, metavar="JSON",
                        help="an object with more parameters of each request, such as "
                        '{"repeat_penalty": 1}')
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="MbppPlus.jsonl")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--tasks", type=int, default=data.TASKS, help="only the first N")
    parser.add_argument("--key-variable", default="OPENAI_API_KEY", metavar="NAME")
    parser.add_argument("--no-key", action="store_true", help="the endpoint wants none")
    parser.add_argument("--attempts", type=int, default=attempts.Policy.attempts,
                        help="at one request (%(default)s)")
    parser.add_argument("--timeout", type=float, default=attempts.Policy.timeout_s,
                        help="seconds for one attempt (%(default)s)")
    parser.add_argument("--longest-wait", type=float, default=attempts.Policy.longest_wait_s,
                        help="seconds between attempts; who asks for more is given up "
                             "(%(default)s)")
    options = parser.parse_args(arguments)
    address = urllib.parse.urlsplit(options.base_url)
    if address.scheme not in ("http", "https") or not address.hostname or address.username:
        parser.error("--base-url must be http(s)://HOST/..., with no user or key in it")
    if address.query:
        parser.error("--base-url must have no ?query: a key in it would be stored")
    if min(options.concurrency, options.attempts) < 1:
        parser.error("--concurrency and --attempts must be at least 1")
    options.policy = attempts.Policy(attempts=options.attempts, timeout_s=options.timeout,
                                     longest_wait_s=options.longest_wait)
    return options


def key_from_environment(options):
    if options.no_key:
        return ""
    key = os.environ.get(options.key_variable, "").strip()
    if not key:
        raise data.DataError(f"the environment has no {options.key_variable}; set it, or say "
                             "--no-key")
    return key


def main(arguments=None):
    options = parse(arguments)
    try:
        key = key_from_environment(options)
        tasks = data.read_tasks(options.data, options.tasks)
        book = journal.Journal(options.output, header_of(options))
    except (data.DataError, OSError) as error:
        say(error)
        return BAD_FILE
    try:
        asyncio.run(run(options, key, tasks, book))
    except (asyncio.CancelledError, KeyboardInterrupt):
        say("stopped; start it again to go on")
        return AGAIN
    except Fatal as fatal:
        say(f"{fatal.failure.kind}: {fatal.failure.message}; no other request would fare better")
        return AGAIN if fatal.failure.kind == "429" else UNAVAILABLE
    finally:
        book.close()
    return all_done(options, tasks)


if __name__ == "__main__":
    sys.exit(main())
