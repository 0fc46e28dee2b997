#!/usr/bin/env python3
"""Turns a GGUF file into a Hugging Face directory: safetensors, config, tokenizer.json.

    make_hf_directory.py SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct-hf

    make_hf_directory.py --dtype float16 SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct-f16

Put the first beside the GGUF file in the folder that HEADRACE_MODELS names, and
mp/goldens_test.py checks it, too; perf/quality.py measures the second. Needs the packages torch, transformers, accelerate and gguf; run by hand.
"""
import argparse
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("directory", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.directory.exists():
        raise SystemExit(f"{arguments.directory} is there already; move it away")
    source = {"pretrained_model_name_or_path": str(arguments.gguf.resolve().parent),
              "gguf_file": arguments.gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, arguments.dtype))
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The weights are dequantised; a trace of where they came from would forbid saving them.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(arguments.directory)
    tokenizer.save_pretrained(arguments.directory)
    for file in sorted(arguments.directory.iterdir()):
        print(f"{file.stat().st_size:12d}  {file.name}")


if __name__ == "__main__":
    main()
