"""The peer of versus.py: OpenVINO GenAI, package openvino-genai, which reads GGUF files of Q4_0.

    peer_openvino.py MODEL.gguf BATCH PROMPT_TOKENS STEPS THREADS

Generates STEPS + 1 tokens for each of BATCH random prompts. Prints JSON: prefill_s, until the first
tokens, and step_s, the mean of the others for each of them.
"""
import json
import random
import sys
import time

import numpy
import openvino
import openvino_genai

VOCABULARY = 150000  # token ids of all families are below


def generate(pipeline, inputs, tokens):
    config = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True)
    config.do_sample = False
    start = time.monotonic()
    pipeline.generate(inputs, config)
    return time.monotonic() - start


def main():
    path = sys.argv[1]
    batch, prompt, steps, threads = (int(word) for word in sys.argv[2:])
    start = time.monotonic()
    pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    load_s = time.monotonic() - start
    numbers = random.Random(0)

    def fresh():
        """Prompts that it has not seen: it keeps the KV cache of those that it has."""
        ids = numpy.array([[numbers.randrange(1000, VOCABULARY) for _ in range(prompt)]
                           for _ in range(batch)], dtype=numpy.int64)
        return openvino_genai.TokenizedInputs(openvino.Tensor(ids),
                                              openvino.Tensor(numpy.ones_like(ids)))

    generate(pipeline, fresh(), 2)  # what is compiled at the first call
    prefill_s = generate(pipeline, fresh(), 1)
    all_s = generate(pipeline, fresh(), steps + 1)
    json.dump({"load_s": load_s, "prefill_s": prefill_s,
               "step_s": [(all_s - prefill_s) / steps] * steps}, sys.stdout)


main()
