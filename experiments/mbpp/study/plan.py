"""Which runs make up the study."""
import dataclasses

BATCHES = (1, 4, 16, 64)
STAGES = ((1, 2), (2, 1))  # ranks, and threads of each
QUICK_BATCHES = (1, 4, 16)
PEER_BATCHES = (1, 4, 16)
PEER_TASKS = 64
SAMPLES = 10
SAMPLED_TASKS = 100
SAMPLED_TASKS_BY_BATCH = 20


@dataclasses.dataclass(frozen=True)
class Run:
    """One start of headrace generate on one batch file.

    kind: "greedy", "sampled", or "qwen-prompt" (greedy, with Qwen's own prompt). Runs of one kind
    have the same requests, or the first tasks or draws of them, so their outputs must be equal.
    """
    name: str
    kind: str
    batch: int
    ranks: int
    threads: int
    tasks: int
    draws: int = 1

    @property
    def prompt(self):
        return "qwen" if self.kind == "qwen-prompt" else "evalplus"


@dataclasses.dataclass(frozen=True)
class Plan:
    runs: tuple           # of Run
    peer_runs: tuple      # of Run: the first tasks again, in turn with another program
    bench_batches: tuple  # of the fixed-length run
    bench_repeat: int
    bench_tokens: int     # of the prompt, and as many generated


def greedy_runs(tasks, batches):
    return [Run(f"batch{batch}-stages{ranks}", "greedy", batch, ranks, threads, tasks)
            for ranks, threads in STAGES for batch in batches]


def peer_runs(tasks, batches):
    return tuple(Run(f"peer-batch{batch}", "greedy", batch, 1, 2, min(tasks, PEER_TASKS))
                 for batch in batches)


def full(tasks, qwen_prompt):
    """qwen_prompt: also one run with Qwen's own prompt.

    All batch sizes of one stage come first, so that a study of several sessions has them from one
    machine; batch 1, which takes longest, comes last of its stage count.
    """
    sampled = min(tasks, SAMPLED_TASKS)
    largest_first = greedy_runs(tasks, BATCHES[::-1])
    runs = [run for run in largest_first if run.ranks == 1]
    runs.append(Run("sampled-batch64-stages1", "sampled", 64, 1, 2, sampled, SAMPLES))
    if qwen_prompt:
        runs.append(Run("qwen-prompt-batch64-stages1", "qwen-prompt", 64, 1, 2, tasks))
    by_batch = min(tasks, SAMPLED_TASKS_BY_BATCH)
    runs += [Run(f"sampled-batch{batch}-stages1", "sampled", batch, 1, 2, by_batch, SAMPLES)
             for batch in (16, 4, 1)]
    runs.append(Run("sampled-batch16-stages2", "sampled", 16, 2, 1, by_batch, SAMPLES))
    runs += [run for run in largest_first if run.ranks != 1]
    return Plan(tuple(runs), peer_runs(tasks, PEER_BATCHES), BATCHES, bench_repeat=3,
                bench_tokens=128)


def quick(tasks):
    runs = greedy_runs(tasks, QUICK_BATCHES)
    runs.append(Run("sampled-batch16-stages1", "sampled", 16, 1, 2, min(tasks, 5), 3))
    return Plan(tuple(runs), peer_runs(tasks, PEER_BATCHES), QUICK_BATCHES, bench_repeat=1,
                bench_tokens=32)
