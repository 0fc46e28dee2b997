"""One run inside the sandbox: python3 -m scoring.runner DESCRIPTOR <ORDER

ORDER is a JSON object; its "step" names a function below. What it has to say goes to DESCRIPTOR,
one JSON object a line; a line {"ready": true} comes before anything of a candidate is looked at.
"""
import json
import multiprocessing
import os
import pathlib
import pickle
import platform
import socket
import sys
import time

import numpy

from scoring import confine, evalplus_parts

# A function of one argument with one test in each suite.
PROBE = {"task_id": "Mbpp/0", "entry_point": "f", "atol": 0, "base_input": [[1]],
         "plus_input": [[2]]}
PROBE_EXPECTED = {"base": [2], "base_time": [0.0], "plus": [3], "plus_time": [0.0]}
RIGHT = "def f(x):\n    return x + 1"
WRONG = "def f(x):\n    return x + 2"
# Right only where it may start no process and open no socket.
HELD = """
import _socket, ctypes
def f(x):
    if ctypes.CDLL(None).fork() >= 0:
        return None
    try:
        _socket.socket()
    except PermissionError:
        return x + 1
"""


def probe(order, send):
    """Whether this is a sandbox, EvalPlus judges in it as it should, and a candidate is held."""
    wanted = {"right": (RIGHT, "pass"), "wrong": (WRONG, "fail")}
    if order["confined"]:
        wanted["held"] = (HELD, "pass")
        open_ways = [name for name, is_open in _ways_out().items() if is_open]
        if open_ways:
            send(wrong=f"bwrap does not hold: {', '.join(open_ways)}")
            return
    limits = {**order["limits"], "min_time_limit": 20.0}  # a busy machine is no reason to refuse
    for name, (code, status) in wanted.items():
        verdict = _check(limits, PROBE, PROBE_EXPECTED, code)
        if (verdict["base"], verdict["plus"]) != (status, status):
            send(wrong=f"the probe program '{name}' should {status}, but: {verdict}")
            return
    send(evalplus=evalplus_parts.VERSION, numpy=numpy.__version__,
         python=platform.python_version())


def _ways_out():
    return {"the user is the same": os.getuid() != 65534,
            "processes of the host are seen": os.getpid() > 10,
            "the network is there": any(name != "lo" for _, name in socket.if_nameindex()),
            "files of the host are seen": os.path.exists("/etc/passwd"),
            "the system can be written to": os.access("/", os.W_OK) or os.access("/usr", os.W_OK),
            "the environment is passed on": "PATH" in os.environ}


def references(order, send):
    """EvalPlus's expected outputs, from the reference solutions; one file a task."""
    problems = evalplus_parts.get_mbpp_plus()
    expected = evalplus_parts.get_groundtruth(problems, evalplus_parts.get_mbpp_plus_hash(),
                                              evalplus_parts.MBPP_OUTPUT_NOT_NONE_TASKS)
    for task_id, problem in problems.items():
        path = pathlib.Path(order["folder"]) / f"{task_id.replace('/', '_')}.pickle"
        with open(path, "wb") as file:
            pickle.dump((problem, expected[task_id]), file)
    send(tasks=len(problems))


def candidate(order, send):
    """One generation: sanitised, then run against the tests of its task."""
    with open(order["task"], "rb") as file:
        problem, expected = pickle.load(file)
    send(ready=True)
    solution = order["text"]
    try:
        if order["sanitize"]:
            solution = evalplus_parts.sanitize(solution, problem["entry_point"])
    except Exception as error:
        send(solution=solution, base="fail", plus="fail", seconds=0.0,
             note=f"the sanitiser gave up: {type(error).__name__}")
        return
    send(solution=solution, **_check(order["limits"], problem, expected, solution))


def _check(limits, problem, expected, solution):
    start = time.monotonic()
    try:
        result = evalplus_parts.check_correctness(
            "mbpp", 0, problem, solution, expected, fast_check=True,
            min_time_limit=limits["min_time_limit"],
            gt_time_limit_factor=limits["gt_time_limit_factor"])
        verdict = {"base": result["base"][0], "plus": result["plus"][0]}
    except Exception as error:  # as a rule: its shared memory was written to
        verdict = {"base": "fail", "plus": "fail",
                   "note": f"EvalPlus had no verdict: {type(error).__name__}"}
    return {**verdict, "seconds": round(time.monotonic() - start, 3)}


def main():
    order = json.load(sys.stdin)
    descriptor = int(sys.argv[1])

    def send(**message):
        os.write(descriptor, (json.dumps(message) + "\n").encode())

    multiprocessing.set_start_method("fork")  # else a candidate's process would not be confined
    confine.limit(order["limits"])
    confine.hide_memory()
    confine.at_fork(descriptor, order["limits"]["open_files"], order["confined"])
    {"probe": probe, "references": references, "candidate": candidate}[order["step"]](order, send)


if __name__ == "__main__":
    main()
