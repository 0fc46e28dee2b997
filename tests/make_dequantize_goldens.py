#!/usr/bin/env python3
"""Writes tests/data/dequantize.bin: random blocks of every format and what gguf-py makes of them.

Per format, in this order: name (8 bytes, zero padded), number of elements and number of stored bytes
(u32 little-endian each), the stored bytes, the elements as float32. Needs the packages gguf and numpy.
"""
import argparse
import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]

# Where a block of each format keeps its float16 scales, as byte offsets.
SCALES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def random_blocks(name: str, n_elements: int, rng: np.random.Generator) -> np.ndarray:
    """Random bytes, but with scales that are finite and cover the range of float16."""
    block, size = gguf.GGML_QUANT_SIZES[Type[name]]
    n_blocks = n_elements // block
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal(n_elements) * 10.0 ** rng.integers(-4, 5, n_elements)
        values = values.astype(np.float32)
        if name == "F32":
            return values.view(np.uint8)
        if name == "F16":
            return values.clip(-60000, 60000).astype(np.float16).view(np.uint8)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    blocks = rng.integers(0, 256, (n_blocks, size), dtype=np.uint8)
    for offset in SCALES[name]:
        bits = rng.integers(0, 0x7C00, n_blocks) | (rng.integers(0, 2, n_blocks) << 15)
        blocks[:, offset:offset + 2] = bits.astype(np.uint16)[:, None].view(np.uint8)
    return blocks.reshape(-1)


def main() -> None:
    default = pathlib.Path(__file__).resolve().parent / "data" / "dequantize.bin"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--elements", type=int, default=512, help="per format, a multiple of 256")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with open(options.output, "wb") as out:
        for name in FORMATS:
            stored = random_blocks(name, options.elements, rng)
            values = gguf.dequantize(stored.reshape(1, -1), Type[name]).astype(np.float32).reshape(-1)
            assert values.size == options.elements and np.isfinite(values).all()
            out.write(struct.pack("<8sII", name.encode(), values.size, stored.size))
            out.write(stored.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
