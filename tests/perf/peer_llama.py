"""The peer of offload.py and versus.py: llama.cpp through the package llama-cpp-python.

    peer_llama.py MODEL.gguf BATCH PROMPT_TOKENS STEPS THREADS [--mapped]
    peer_llama.py MODEL.gguf --requantise OUT.gguf

Prefills BATCH random prompts and decodes STEPS tokens for each, with flash attention; choosing
tokens is left out. Prints JSON: prefill_s, and step_s, the seconds of each decode step. --mapped:
weights are not repacked but stay pages of the file, which the kernel may drop and read again.
--requantise writes all matrices as Q4_0.
"""
import argparse
import ctypes
import json
import random
import sys
import time

import llama_cpp as llama

MICRO_BATCH = 512
BATCH = 2048


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


def open_model(path, options):
    model_options = llama.llama_model_default_params()
    if options.mapped:
        # Newer versions have modes where older ones have a switch.
        if hasattr(model_options, "load_mode"):
            model_options.load_mode = llama.LLAMA_LOAD_MODE_MMAP
        else:
            model_options.use_mmap = True
    repacks = not options.mapped
    if hasattr(model_options, "use_extra_bufts"):
        model_options.use_extra_bufts = repacks
    else:
        repacks = True
    model = llama.llama_model_load_from_file(path.encode(), model_options)
    if not model:
        raise SystemExit(f"{path}: llama.cpp cannot load it")
    return model, repacks


def open_context(model, options):
    context_options = llama.llama_context_default_params()
    # Some places more than are used: a context is rounded up per sequence.
    context_options.n_ctx = options.batch * (options.prompt + options.steps + 32)
    context_options.n_batch = BATCH
    context_options.n_ubatch = MICRO_BATCH
    context_options.n_seq_max = options.batch
    context_options.n_threads = context_options.n_threads_batch = options.threads
    if hasattr(context_options, "flash_attn_type"):
        context_options.flash_attn_type = 1
    else:
        context_options.flash_attn = True
    context = llama.llama_init_from_model(model, context_options)
    if not context:
        raise SystemExit("llama.cpp cannot make a context")
    return context


def prefill(context, options, numbers, vocabulary):
    """Its seconds."""
    fill = Fill(BATCH)
    start = time.monotonic()
    for sequence in range(options.batch):
        if fill.batch.n_tokens + options.prompt > BATCH:
            fill.decode(context)
            fill.clear()
        for position in range(options.prompt):
            fill.add(numbers.randrange(vocabulary), position, sequence,
                     position == options.prompt - 1)
    fill.decode(context)
    return time.monotonic() - start


def decode(context, options, numbers, vocabulary):
    """The seconds of each step."""
    fill = Fill(options.batch)
    step_s = []
    for step in range(options.steps):
        fill.clear()
        for sequence in range(options.batch):
            fill.add(numbers.randrange(vocabulary), options.prompt + step, sequence, True)
        start = time.monotonic()
        fill.decode(context)
        step_s.append(time.monotonic() - start)
    return step_s


def requantise(path, out):
    how = llama.llama_model_quantize_default_params()
    how.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    how.pure = True
    how.allow_requantize = True
    if llama.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(how)) != 0:
        raise SystemExit(f"{path}: llama.cpp cannot requantise it")


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("batch", type=int, nargs="?")
    parser.add_argument("prompt", type=int, nargs="?")
    parser.add_argument("steps", type=int, nargs="?")
    parser.add_argument("threads", type=int, nargs="?")
    parser.add_argument("--mapped", action="store_true")
    parser.add_argument("--requantise", metavar="OUT")
    return parser.parse_args()


def main():
    options = parse()
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    if options.requantise:
        return requantise(options.model, options.requantise)
    start = time.monotonic()
    model, repacked = open_model(options.model, options)
    context = open_context(model, options)
    load_s = time.monotonic() - start
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    numbers = random.Random(0)
    prefill_s = prefill(context, options, numbers, vocabulary)
    step_s = decode(context, options, numbers, vocabulary)
    json.dump({"load_s": load_s, "prefill_s": prefill_s, "step_s": step_s,
               "repacked": repacked}, sys.stdout)


main()
