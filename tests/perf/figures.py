"""The six figures of offload.py: each measures, prints a table and returns what it measured."""
import os
import pathlib
import shutil

import spread

MPIRUN = ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none"]
LARGE = ("qwen2.5-1.5b", "q8_0")


class LeftOut(Exception):
    """A figure that cannot be measured here; the text says why."""


def streamed(result):
    return sum(rank["streamed_bytes"] for rank in result["ranks"])


def larger_than_memory(lab):
    o = lab.options
    model = lab.model(*LARGE)
    lab.build_offload_file(model)
    missing = lab.peer_missing()
    if missing:
        print(f"the peer is left out: {missing}")
    rounds = {batch: [] for batch in o.batches}
    for number in range(o.rounds):
        for batch in o.batches:
            with lab.round(number):
                rounds[batch].append(one_batch(lab, model, batch, not missing))
    print_against_peer(lab, rounds)
    print_against_limit(lab, rounds)
    return rounds


def one_batch(lab, model, batch, with_peer):
    o = lab.options
    entry = {}
    if with_peer and batch <= o.peer_batch:
        steps = lab.peer(model, batch, o.prompt, o.peer_steps)["step_s"]
        entry["peer_s"] = sum(steps) / len(steps)
    with lab.group() as group:
        result = lab.limited(model, batch, o.prompt, o.generate, "--kv", o.kv, group=group)
        entry["peak_mib"] = group.peak_memory() / 2**20
    # Computing alone: all in memory, short prompts.
    alone = lab.bench(model, batch, 8, min(o.generate, 8), "--kv", o.kv)
    rank = result["ranks"][0]
    entry |= {"step_s": result["step_s"], "streamed": streamed(result),
              "predicted_s": rank["expected_round_s"], "compute_s": alone["step_s"],
              "disk_rate": rank["disk_bytes_per_s"]}
    lab.say(f"batch {batch}: {entry}")
    return entry


def print_against_peer(lab, rounds):
    rows = []
    for batch, entries in rounds.items():
        ours = [e["step_s"] for e in entries]
        peer = [e["peer_s"] for e in entries if "peer_s" in e]
        rate = [e["streamed"] / e["step_s"] / 1e6 for e in entries]
        rows.append([batch, spread.text(peer) if peer else "", spread.text(ours),
                     spread.text(spread.ratios(peer, ours)) if peer else "",
                     spread.text([batch / s for s in ours]), spread.text(rate, 0),
                     spread.text([100 * r * 1e6 / lab.rate for r in rate], 1)])
    o = lab.options
    print(f"\nfigure 1: {LARGE[0]} {LARGE[1]}, {o.memory} MiB, {o.rate:.0f} MB/s, "
          f"{o.prompt} + {o.generate} tokens (peer: {o.peer_steps} steps), KV {o.kv}, "
          f"{o.rounds} rounds\n")
    print(spread.table(["batch", "llama.cpp s/step", "headrace s/step", "ratio", "headrace tok/s",
                        "MB/s read", "% of the disk's rate"], rows))


def print_against_limit(lab, rounds):
    rows = []
    for batch, entries in rounds.items():
        ours = [e["step_s"] for e in entries]
        read = [e["streamed"] / lab.rate for e in entries]
        compute = [e["compute_s"] for e in entries]
        limit = [max(pair) for pair in zip(read, compute)]
        predicted = [e["predicted_s"] for e in entries]
        rows.append([batch, spread.text(read), spread.text(compute), spread.text(ours),
                     spread.text(spread.ratios(ours, limit)), spread.text(predicted),
                     spread.text(spread.ratios(ours, predicted))])
    print("\nfigure 2: seconds per step against the larger of reading and computing alone\n")
    print(spread.table(["batch", "reading", "computing", "measured", "measured / limit",
                        "predicted", "measured / predicted"], rows))


class Pair:
    """Two ranks, each with half of the layers of the large model and --pair-memory."""

    def __init__(self, lab):
        if not shutil.which("mpirun"):
            raise LeftOut("there is no mpirun")
        o = lab.options
        self.lab, self.model, self.rate = lab, lab.model(*LARGE), o.pair_rate * 1e6
        self.group_size = 8 if o.quick else 32
        self.budget = ["--host-memory", f"{o.pair_memory - o.margin}MiB",
                       "--threads", max(1, o.threads // 2)]
        self.launcher = MPIRUN if os.geteuid() else [*MPIRUN, "--allow-run-as-root"]
        lab.build_offload_file(self.model, *self.budget, launcher=self.launcher)

    def bench(self, sequences, first, second):
        """Each rank in its control group."""
        enter = enter_by_rank(first, second)
        return self.lab.bench(self.model, sequences, 16, 24, *self.budget,
                              launcher=[*self.launcher, *enter])

    def on_own_disks(self, sequences):
        with self.disk() as first, self.disk() as second:
            return self.bench(sequences, first, second)

    def on_one_disk(self, sequences):
        """That is as fast as both together."""
        o = self.lab.options
        with self.lab.group(2 * o.pair_memory, 2 * self.rate) as both:
            return self.bench(sequences, both, both)

    def disk(self):
        return self.lab.group(self.lab.options.pair_memory, self.rate)


def two_ranks(lab):
    """A group of 32 sequences is in a stage at a time, so two stages have 64 in flight."""
    o, pair = lab.options, Pair(lab)
    group_size = pair.group_size
    lab.build_offload_file(pair.model)
    entries = []
    for number in range(o.rounds):
        with lab.round(number):
            with lab.group(rate=pair.rate) as group:
                one = lab.limited(pair.model, group_size, 16, 24, group=group)
            two = pair.on_own_disks(2 * group_size)
            same = pair.on_own_disks(group_size)
        entries.append({"one": one["decode_rate"], "two": two["decode_rate"],
                        "same": same["decode_rate"], "one_streamed": streamed(one),
                        "two_streamed": streamed(two),
                        "predicted": 2 * group_size / max(r["expected_round_s"]
                                                          for r in two["ranks"])})
        lab.say(str(entries[-1]))
    one, two, same, predicted = ([e[k] for e in entries] for k in ("one", "two", "same", "predicted"))
    print(f"\nfigure 3: decode tok/s, {o.pair_rate:.0f} MB/s a disk, 16 + 24 tokens, "
          f"{o.rounds} rounds; two ranks have {o.pair_memory} MiB each\n")
    head = ["run", "MB read per group and step", "tok/s", "over one rank", "predicted"]
    print(spread.table(head, [
        [f"one rank, {o.memory} MiB, {group_size} in flight",
         f"{entries[0]['one_streamed'] / 1e6:.0f}", spread.text(one), "", ""],
        [f"two ranks, {2 * group_size} in flight", f"{entries[0]['two_streamed'] / 1e6:.0f}",
         spread.text(two), spread.text(spread.ratios(two, one)), spread.text(predicted)],
        [f"two ranks, {group_size} in flight", f"{entries[0]['two_streamed'] / 1e6:.0f}",
         spread.text(same), spread.text(spread.ratios(same, one)), ""]]))
    return entries


def shared_disk(lab):
    o, pair = lab.options, Pair(lab)
    entries = []
    for number in range(o.rounds):
        with lab.round(number):
            own = pair.on_own_disks(2 * pair.group_size)
            shared = pair.on_one_disk(2 * pair.group_size)
        entries.append({"own": own["decode_rate"], "shared": shared["decode_rate"]})
        lab.say(str(entries[-1]))
    own, shared = ([e[k] for e in entries] for k in ("own", "shared"))
    print(f"\nfigure 6: two ranks, {2 * pair.group_size} in flight, decode tok/s, {o.rounds} rounds\n")
    print(spread.table(["disks", "tok/s", "over own disks"], [
        [f"one each, {o.pair_rate:.0f} MB/s", spread.text(own), ""],
        [f"one for both, {2 * o.pair_rate:.0f} MB/s", spread.text(shared),
         spread.text(spread.ratios(shared, own))]]))
    return entries


def enter_by_rank(first, second):
    """A command before the program: each rank goes into its own group."""
    script = ('case $OMPI_COMM_WORLD_RANK in 0) for f in $1; do echo $$ > $f; done ;; '
              '*) for f in $2; do echo $$ > $f; done ;; esac; shift 2; exec "$@"')
    return ["sh", "-c", script, "sh", " ".join(first.tasks), " ".join(second.tasks)]


def kv_on_disk(lab):
    o = lab.options
    if not pathlib.Path(o.kv_model).is_file():
        raise LeftOut(f"{o.kv_model} is not there; give --kv-model or set HEADRACE_MODELS")
    prompt = o.kv_tokens // 2
    shape = (o.kv_model, o.kv_sequences, prompt, o.kv_tokens - prompt)
    # Once, as it is there for its tokens.
    memory = lab.bench(*shape)
    lab.say(f"all in memory: {memory['decode_rate']}")
    entries = []
    for number in range(o.rounds):
        # Memory for weights and all else, which are not what is measured.
        with lab.round(number), lab.group(o.kv_memory + 2048, o.kv_rate * 1e6) as group:
            disk = lab.bench(*shape, "--kv-memory", f"{o.kv_memory}MiB", group=group)
        if memory["run"]["tokens_hash"] != disk["run"]["tokens_hash"]:
            raise RuntimeError("the tokens differ between KV in memory and on disk")
        rank = disk["ranks"][0]
        if rank["disk_bytes_per_s"] == 0:
            raise RuntimeError("nothing was on disk: --kv-memory is too large")
        entries.append({"memory": memory["decode_rate"], "disk": disk["decode_rate"],
                        "prefill_s": disk["run"]["prefill_s"],
                        "predicted": o.kv_sequences / rank["expected_round_s"],
                        "compute_s": rank["expected_compute_s"], "disk_s": rank["expected_disk_s"],
                        "disk_rate": rank["disk_bytes_per_s"]})
        lab.say(str(entries[-1]))
    disk, predicted = ([e[k] for e in entries] for k in ("disk", "predicted"))
    print(f"\nfigure 4: {o.kv_sequences} sequences of {o.kv_tokens} tokens, half of them generated, "
          f"KV budget {o.kv_memory} MiB, {o.kv_rate:.0f} MB/s, {o.rounds} rounds; the tokens are "
          "equal\n")
    print(spread.table(["", "decode tok/s"],
                       [["all in memory, not limited, once", f"{memory['decode_rate']:.2f}"],
                        ["on disk", spread.text(disk)],
                        ["predicted", spread.text(predicted)],
                        ["on disk / predicted", spread.text(spread.ratios(disk, predicted))]]))
    return entries


def four_bits(lab):
    o = lab.options
    model = lab.model("qwen2.5-1.5b", "bf16")
    batch, budget = 8, ["--host-memory", "200MiB"]
    for weights in ("q8", "q4"):
        lab.build_offload_file(model, *budget, "--weights", weights)
    entries = []
    for number in range(o.rounds):
        entry = {}
        with lab.round(number):
            for weights in ("q8", "q4"):
                with lab.group() as group:
                    result = lab.bench(model, batch, 16, 8, *budget, "--weights", weights, group=group)
                entry[weights] = result["decode_rate"]
                entry[weights + "_bytes"] = streamed(result)
                entry[weights + "_predicted"] = batch / result["ranks"][0]["expected_round_s"]
        entries.append(entry)
        lab.say(str(entry))
    print(f"\nfigure 5: qwen2.5-1.5b bf16 quantised, 200 MiB, {o.rate:.0f} MB/s, batch {batch}, "
          f"16 + 8 tokens, {o.rounds} rounds\n")
    rows = [[weights, spread.text([e[weights + "_bytes"] / 1e6 for e in entries], 0),
             spread.text([e[weights] for e in entries]),
             spread.text([e[weights + "_predicted"] for e in entries])] for weights in ("q8", "q4")]
    rows.append(["q4 / q8",
                 spread.text([e["q4_bytes"] / e["q8_bytes"] for e in entries]),
                 spread.text([e["q4"] / e["q8"] for e in entries]), ""])
    print(spread.table(["weights", "MB read per step", "tok/s", "predicted"], rows))
    return entries


ALL = {1: larger_than_memory, 3: two_ranks, 4: kv_on_disk, 5: four_bits, 6: shared_disk}
