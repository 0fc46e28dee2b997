"""Random models of each family that are large enough for their weights to be read from disk.

The models of tests/data are smaller than the pieces in which weights are read. These have twelve
layers of more than a megabyte, and a vocabulary whose head is read in more than one piece.
"""
import json
import math
import random
import struct

LAYERS, WIDTH, FFN, HEADS, VOCABULARY, POSITIONS = 12, 192, 384, 3, 10000, 512
OPT_EMBEDDING = 128

_CONFIG = {
    "bos_token_id": 1, "eos_token_id": 2, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY,
}
_GATED = {
    "hidden_act": "silu", "intermediate_size": FFN, "num_key_value_heads": HEADS,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}
CONFIGS = {
    "llama": {**_CONFIG, **_GATED, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
              "tie_word_embeddings": False},
    "qwen2": {**_CONFIG, **_GATED, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"],
              "tie_word_embeddings": True},
    # The norms after the additions, projections around the layers.
    "opt": {**_CONFIG, "model_type": "opt", "architectures": ["OPTForCausalLM"],
            "activation_function": "relu", "do_layer_norm_before": False, "enable_bias": True,
            "ffn_dim": FFN, "tie_word_embeddings": True, "word_embed_proj_dim": OPT_EMBEDDING},
}


def _gated_shapes(bias, head):
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    if head:
        shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = (WIDTH,)
        for name in "qkvo":
            shapes[f"{at}self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
            if bias and name != "o":
                shapes[f"{at}self_attn.{name}_proj.bias"] = (WIDTH,)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (FFN, WIDTH)
        shapes[f"{at}mlp.down_proj.weight"] = (WIDTH, FFN)
    return shapes


def _opt_shapes():
    top = "model.decoder."
    shapes = {f"{top}embed_tokens.weight": (VOCABULARY, OPT_EMBEDDING),
              f"{top}embed_positions.weight": (POSITIONS + 2, WIDTH),
              f"{top}project_in.weight": (WIDTH, OPT_EMBEDDING),
              f"{top}project_out.weight": (OPT_EMBEDDING, WIDTH)}
    for i in range(LAYERS):
        linear = {f"self_attn.{name}": (WIDTH, WIDTH)
                  for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linear.update(fc1=(FFN, WIDTH), fc2=(WIDTH, FFN))
        for name, shape in linear.items():
            shapes[f"{top}layers.{i}.{name}.weight"] = shape
            shapes[f"{top}layers.{i}.{name}.bias"] = shape[:1]
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes[f"{top}layers.{i}.{name}.weight"] = (WIDTH,)
            shapes[f"{top}layers.{i}.{name}.bias"] = (WIDTH,)
    return shapes


def _floats(rng, count, is_norm):
    """float32 of random bits: 0.5 to 2 for the weights of norms, else up to 1/8 of either sign."""
    data = bytearray(rng.randbytes(4 * count))
    high = bytes([0x3f]) * 256 if is_norm else bytes([0x3c, 0xbc, 0x3d, 0xbd]) * 64
    data[3::4] = data[3::4].translate(high)
    return data


def write(folder, family):
    """A Hugging Face directory with float32 weights; the same ones every time."""
    shapes = _opt_shapes() if family == "opt" else _gated_shapes(family == "qwen2", family == "llama")
    rng = random.Random(family)
    header, tensors, offset = {}, [], 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * count]}
        offset += 4 * count
        tensors.append(_floats(rng, count, "norm.weight" in name))
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(tensors)
    return folder
