"""What the benchmarks of offload.py share: options, models, and a run of headrace or of the peer."""
import contextlib
import fcntl
import json
import pathlib
import subprocess
import sys
import time

import limits

HERE = pathlib.Path(__file__).parent
MIB = 1 << 20


class Lab:
    def __init__(self, options):
        self.options = options
        self.work = pathlib.Path(options.work).resolve()
        self.disk = self.work / "offload"
        self.disk.mkdir(parents=True, exist_ok=True)
        self.budget = (options.memory - options.margin) * MIB
        self.rate = options.rate * 1e6

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def model(self, shape, form):
        """The model file; made if it is not there."""
        path = self.work / f"{shape}-{form}.gguf"
        if not path.exists():
            self.say(f"making {path}")
            limits.run([self.options.program, "synthesize", shape, form, path, "--quiet"])
        return path

    def group(self, memory_mib=None, rate=None):
        """Memory and read limits; the options' where none are given."""
        return limits.Group(self.work, (memory_mib or self.options.memory) * MIB, rate or self.rate)

    @contextlib.contextmanager
    def round(self, number):
        """A round, during which nobody else holds --lock."""
        with contextlib.ExitStack() as stack:
            if self.options.lock:
                time.sleep(2)  # a lock that is taken again at once is never had by those who wait
                lock = stack.enter_context(open(self.options.lock, "a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.say(f"round {number + 1} of {self.options.rounds}")
            yield

    def bench(self, model, batch, prompt, generate, *more, group=None, launcher=()):
        """The JSON of headrace bench, with step_s: the seconds of a decode step."""
        out = self.work / "bench.json"
        limits.run([*launcher, self.options.program, "bench", "--model", model, "--batch", batch,
                    "--prompt-tokens", prompt, "--generate-tokens", generate, "--disk", self.disk,
                    "--json", out, *more], group)
        result = json.loads(out.read_text())
        run = result["batches"][0]["runs"][0]
        result["run"] = run
        result["decode_rate"] = result["batches"][0]["decode_tokens_per_s"]["median"]
        result["step_s"] = batch / result["decode_rate"]
        return result

    def limited(self, model, batch, prompt, generate, *more, group):
        return self.bench(model, batch, prompt, generate, "--host-memory", self.budget, *more,
                          group=group)

    def build_offload_file(self, model, *more, launcher=()):
        """So that no round builds it: without limits, through a run that needs the file."""
        self.bench(model, 1, 4, 2, *(more or ("--host-memory", self.budget)), launcher=launcher)

    def peer(self, model, batch, prompt, steps):
        limits.drop_from_cache(model)
        with self.group() as group:
            out, _ = limits.run([self.options.peer_python, HERE / "peer_llama.py", model, batch,
                                 prompt, steps, self.options.threads, "--mapped"], group)
        return json.loads(out)

    def peer_missing(self):
        """Why the peer cannot be run; empty if it can."""
        try:
            done = subprocess.run([self.options.peer_python, "-c", "import llama_cpp"],
                                  capture_output=True, text=True, check=False)
        except OSError as error:
            return f"{self.options.peer_python}: {error.strerror}"
        return done.stderr.strip().splitlines()[-1] if done.returncode else ""
