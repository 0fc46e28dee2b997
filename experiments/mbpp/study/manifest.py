"""manifest.json: what was run, on what, with which parameters."""
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess

from study import data, prompts


def said_by(*command):
    """What a program says of its version; None where it is not there."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=60)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_facts():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda name: next(iter(re.findall(rf"^{name}\s*: (.*)$", text, re.MULTILINE)), "")
    known = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {"model": field("model name"), "logical_cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "vector_flags": [flag for flag in known if flag in field("flags").split()]}


def machine():
    """Which machine this is, since it was started last: rates of two do not compare."""
    cpu = cpu_facts()
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return {"cpu": cpu["model"], "vector_flags": cpu["vector_flags"],
            "usable_cores": cpu["usable_cores"], "boot": hashlib.sha256(boot).hexdigest()[:12]}


def memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def compiler_of(program):
    """From the CMake cache of the build that the program lies in, where it does."""
    cache = program.resolve().parent / "CMakeCache.txt"
    if not cache.exists():
        return program_comment(program)
    text = cache.read_text(errors="replace")
    field = lambda name: next(iter(re.findall(rf"^{name}:\w+=(.*)$", text, re.MULTILINE)), None)
    compiler = field("CMAKE_CXX_COMPILER")
    version = said_by(compiler, "--version") if compiler else None
    return {"compiler": version.split("\n")[0] if version else program_comment(program),
            "build_type": field("CMAKE_BUILD_TYPE"), "flags": field("CMAKE_CXX_FLAGS")}


def program_comment(program):
    """What the compilers left in the file's .comment section (GCC: (Debian ...) ...)."""
    found = sorted(set(re.findall(rb"GCC: \([ -~]{1,60}\) [0-9.]+", program.read_bytes())))
    return "; ".join(item.decode() for item in found) or None


def version_of_package(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(program):
    mpirun = said_by("mpirun", "--version")
    return {"headrace": said_by(program, "--version"), "python": platform.python_version(),
            "mpi": mpirun.split("\n")[0] if mpirun else None,
            "matplotlib": version_of_package("matplotlib"), "openai": version_of_package("openai")}


def sampling():
    return {"greedy": {"temperature": 0, "max_tokens": prompts.MAX_TOKENS, "stop": prompts.STOPS,
                       "prompt": "EvalPlus 0.3.1 chat", "prefill": prompts.PREFILL,
                       "instruction": prompts.INSTRUCTION},
            "sampled": {"temperature": prompts.TEMPERATURE, "top_p": prompts.TOP_P,
                        "seed": "first 4 bytes, big-endian, of sha256(\"TASK_ID#DRAW\")",
                        "otherwise": "as greedy"},
            "qwen-prompt": {"system": prompts.QWEN_SYSTEM, "instruction": prompts.QWEN_INSTRUCTION,
                            "prefill": prompts.QWEN_PREFILL, "stop": prompts.QWEN_STOPS,
                            "otherwise": "as greedy"},
            "unchanged_defaults": {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "n": 1}}


def make(name, setting, plan, data_file, tasks):
    model = setting.model
    size = model.stat().st_size if model.is_file() else None
    return {
        "study": "MBPP scaling study", "name": name, "tasks": len(tasks),
        "model": {"name": model.name, "bytes": size, "sha256": data.sha256_of_model(model)},
        "data": {"name": data.VERSION, "sha256": data.sha256_of(data_file), "source": data.ADDRESS},
        "program": {"sha256": data.sha256_of(setting.program),
                    "build": compiler_of(setting.program)},
        "machine": {"cpu": cpu_facts(), "memory_bytes": memory_bytes(),
                    "system": platform.platform()},
        "versions": versions(setting.program),
        "sampling": sampling(),
        "device": "cpu",
        "runs": [dataclasses.asdict(run) for run in plan.runs],
        "fixed_length": {"batches": plan.bench_batches, "repeat": plan.bench_repeat,
                         "prompt_tokens": plan.bench_tokens, "generate_tokens": plan.bench_tokens},
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def same_study(old, new):
    """What must be equal for a study to go on where it stopped; names of what is not.

    The order of the runs is free; of the program, only its bytes count."""
    keys = ("program", "model", "data", "sampling", "runs", "fixed_length", "tasks")

    def text(made, key):
        value = made.get(key)
        if key == "runs":
            value = sorted(value or [], key=lambda run: run["name"])
        if key == "program":
            value = value["sha256"]
        return json.dumps(value, sort_keys=True)

    return [key for key in keys if text(old, key) != text(new, key)]
