#!/usr/bin/env python3
"""Writes tests/data/ops/rope_frequencies.json: inverse frequencies of transformers' RoPE.

Usage: make_rope_goldens.py > data/ops/rope_frequencies.json
Made with transformers 5.19.0 and torch 2.15 on the CPU.
"""

import json
import sys

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES = [
    ("llama-2", 128, 10000.0, {"rope_type": "default"}),
    ("smollm2-135m", 64, 100000.0, {"rope_type": "default"}),
    ("qwen2.5", 64, 1000000.0, {"rope_type": "default"}),
    ("odd head", 80, 10000.0, {"rope_type": "default"}),
    ("linear 4", 64, 10000.0, {"rope_type": "linear", "factor": 4.0}),
    ("linear 2.5", 24, 500000.0, {"rope_type": "linear", "factor": 2.5}),
    ("llama-3.1", 128, 500000.0, LLAMA_31),
    ("llama-3.2", 64, 500000.0, {**LLAMA_31, "factor": 32.0}),
]


def frequencies(head_dim, theta, rope):
    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={**rope, "rope_theta": theta},
    )
    rotary = LlamaRotaryEmbedding(config)
    assert rotary.attention_scaling == 1.0
    assert rotary.rope_type == rope["rope_type"]
    return rotary.inv_freq.to(torch.float64).tolist()


def main():
    cases = []
    for name, head_dim, theta, rope in CASES:
        case = {"name": name, "head_dim": head_dim, "theta": theta, **rope}
        # Nine digits bring a float32 back exactly.
        case["frequencies"] = [float(f"{f:.9g}") for f in frequencies(head_dim, theta, rope)]
        cases.append(case)
    json.dump(cases, sys.stdout, indent=1)
    print()


assert "llama3" in ROPE_INIT_FUNCTIONS
if __name__ == "__main__":
    main()
