"""The peer of offload.py: llama.cpp through the package llama-cpp-python, at one batch size.

    peer_llama.py MODEL.gguf BATCH PROMPT_TOKENS STEPS THREADS

Maps the file, does not repack weights (they stay pages of the file, which the kernel may drop and
read again), prefills BATCH random prompts and decodes STEPS greedy tokens for each. Prints JSON:
prefill_s, and step_s, the seconds of each decode step.
"""
import ctypes
import json
import random
import sys
import time

import llama_cpp as llama

MICRO_BATCH = 512


class Fill:
    """One llama_batch that is filled again and again."""

    def __init__(self, rows):
        self.batch = llama.llama_batch_init(rows, 0, 1)
        self.batch.n_tokens = 0

    def clear(self):
        self.batch.n_tokens = 0

    def add(self, token, position, sequence, wants_logits):
        i = self.batch.n_tokens
        self.batch.token[i] = token
        self.batch.pos[i] = position
        self.batch.n_seq_id[i] = 1
        self.batch.seq_id[i][0] = sequence
        self.batch.logits[i] = wants_logits
        self.batch.n_tokens += 1

    def decode(self, context):
        if self.batch.n_tokens and llama.llama_decode(context, self.batch) != 0:
            raise SystemExit("llama_decode failed")


def open_model(path, batch, tokens, threads):
    model_options = llama.llama_model_default_params()
    # Newer versions have modes where older ones have a switch.
    if hasattr(model_options, "load_mode"):
        model_options.load_mode = llama.LLAMA_LOAD_MODE_MMAP
    else:
        model_options.use_mmap = True
    repacks = hasattr(model_options, "use_extra_bufts")
    if repacks:
        model_options.use_extra_bufts = False
    model = llama.llama_model_load_from_file(path.encode(), model_options)
    if not model:
        raise SystemExit(f"{path}: llama.cpp cannot load it")
    options = llama.llama_context_default_params()
    options.n_ctx = batch * tokens
    options.n_batch = options.n_ubatch = MICRO_BATCH
    options.n_seq_max = batch
    options.n_threads = options.n_threads_batch = threads
    context = llama.llama_init_from_model(model, options)
    if not context:
        raise SystemExit("llama.cpp cannot make a context")
    return model, context, repacks


def best(context, row, vocabulary):
    logits = llama.llama_get_logits_ith(context, row)
    return max(range(0, vocabulary, 97), key=lambda i: logits[i])  # any token will do


def main():
    path = sys.argv[1]
    batch, prompt, steps, threads = (int(word) for word in sys.argv[2:])
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    start = time.monotonic()
    # Some places more than are used: a context is rounded up per sequence.
    model, context, unpacked = open_model(path, batch, prompt + steps + 32, threads)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    load_s = time.monotonic() - start

    numbers = random.Random(0)
    fill = Fill(MICRO_BATCH)
    last = [0] * batch
    start = time.monotonic()
    for sequence in range(batch):
        if fill.batch.n_tokens + prompt > MICRO_BATCH:
            fill.decode(context)
            fill.clear()
        for position in range(prompt):
            fill.add(numbers.randrange(vocabulary), position, sequence, position == prompt - 1)
        last[sequence] = numbers.randrange(vocabulary)
    fill.decode(context)
    prefill_s = time.monotonic() - start

    step_s = []
    for step in range(steps):
        start = time.monotonic()
        fill.clear()
        for sequence in range(batch):
            fill.add(last[sequence], prompt + step, sequence, True)
        fill.decode(context)
        last = [best(context, row, vocabulary) for row in range(batch)]
        step_s.append(time.monotonic() - start)
    json.dump({"load_s": load_s, "prefill_s": prefill_s, "step_s": step_s,
               "repacked": not unpacked}, sys.stdout)


main()
