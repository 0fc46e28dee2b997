#!/usr/bin/env python3
"""Writes tests/data/models: tiny random models of every family, with what transformers makes of them.

Each directory holds config.json, generation_config.json, the weights as safetensors (one model
sharded) and goldens.json: per prompt (token ids) 24 greedy continuation ids, the margin between the
best and the second logit at each step, and the five best logits at the last prompt position, computed
in float32 on the CPU with eager attention. llama-rope3 is also written as GGUF in several formats.
Needs the packages torch, transformers, safetensors, gguf and numpy; makes the same files each time.
"""
import argparse
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, MistralConfig, OPTConfig, Qwen2Config, Qwen3Config

VOCAB = 300
NEW_TOKENS = 24
MIN_MARGIN = 5e-3
EOS = [2, 299]

LLAMA3_SCALING = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}


def gated(cls, **changes):
    """A Llama, Mistral or Qwen configuration, small in every dimension."""
    values = dict(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=EOS[0],
    )
    values.update(changes)
    return cls(**values)


def opt(**changes):
    values = dict(
        vocab_size=VOCAB, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, dropout=0.0, bos_token_id=2, eos_token_id=2, pad_token_id=1,
    )
    values.update(changes)
    return OPTConfig(**values)


# name: configuration, stored type, number of shards, how config.json spells RoPE
MODELS = {
    "llama-gqa": (lambda: gated(LlamaConfig, num_hidden_layers=3, num_key_value_heads=1,
                                intermediate_size=128), torch.bfloat16, 1, "new"),
    "llama-rope3": (lambda: gated(LlamaConfig, tie_word_embeddings=True, rope_parameters=LLAMA3_SCALING,
                                  hidden_size=64, num_attention_heads=2, num_key_value_heads=1),
                    torch.float32, 1, "new"),
    "llama-linear-bias": (lambda: gated(LlamaConfig, attention_bias=True, mlp_bias=True, head_dim=24,
                                        rope_parameters={"rope_type": "linear", "rope_theta": 5000.0,
                                                         "factor": 2.0}), torch.float16, 1, "old"),
    "qwen2-tied": (lambda: gated(Qwen2Config, tie_word_embeddings=True, rms_norm_eps=1e-6,
                                 rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
                   torch.bfloat16, 1, "old"),
    "qwen2-untied": (lambda: gated(Qwen2Config, hidden_size=48, num_attention_heads=3,
                                   num_key_value_heads=1, intermediate_size=112), torch.bfloat16, 3, "new"),
    "qwen3-tied": (lambda: gated(Qwen3Config, tie_word_embeddings=True, rms_norm_eps=1e-6, head_dim=24,
                                 rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
                   torch.bfloat16, 1, "old"),
    "mistral": (lambda: gated(MistralConfig, num_key_value_heads=1, sliding_window=128), torch.float16, 1, "new"),
    "opt-pre": (lambda: opt(), torch.bfloat16, 1, "new"),
    "opt-post": (lambda: opt(do_layer_norm_before=False, word_embed_proj_dim=32, num_hidden_layers=2),
                 torch.float16, 1, "new"),
}


def randomise(model, dtype, generator):
    """Larger than the usual initial values, so that logits differ clearly; exact in `dtype`."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                is_norm = "norm" in name and name.endswith("weight")
                noise = 1.0 + 0.2 * noise if is_norm else 0.2 * noise
            else:
                noise = noise * (0.25 if "embed" in name else 0.3)
            weight.copy_(noise.to(dtype).float())


def goldens(model, prompts):
    """Greedy continuations, without stopping at end-of-sequence tokens and without a KV cache."""
    results = []
    smallest = 1e9
    for prompt in prompts:
        ids, continuation, margins, top = list(prompt), [], [], None
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            best = torch.topk(logits, 5)
            if top is None:
                top = [[int(i), float(v)] for i, v in zip(best.indices, best.values)]
            margins.append(float(best.values[0] - best.values[1]))
            continuation.append(int(best.indices[0]))
            ids.append(continuation[-1])
        smallest = min(smallest, *margins)
        results.append({"prompt": prompt, "greedy": continuation,
                        "margins": [round(m, 5) for m in margins], "top5": top})
    return results, smallest


def respell_rope(path):
    """Rewrites rope_parameters as transformers 4 spelled it: rope_theta beside rope_scaling."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_weights(model, folder, dtype, shards):
    state = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(state)
    parts = [names[i::shards] for i in range(shards)]
    weight_map = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    total = sum(value.numel() * value.element_size() for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make_model(name, folder):
    make_config, dtype, shards, spelling = MODELS[name]
    config = make_config()
    config._attn_implementation = "eager"
    config.dtype = dtype
    seed = 0
    while True:  # the first seed whose continuations are free of near ties and of repetition
        seed += 1
        generator = torch.Generator().manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomise(model, dtype, generator)
        prompts = [torch.randint(3, VOCAB - 1, (n,), generator=generator).tolist() for n in (1, 5, 17, 40)]
        results, smallest = goldens(model, prompts)
        varied = min(len(set(result["greedy"])) for result in results)
        if smallest > MIN_MARGIN and varied >= 8:
            break
        if seed == 400:
            raise SystemExit(f"{name}: no seed gives clear, varied continuations")
    folder.mkdir(parents=True)
    save_weights(model, folder, dtype, shards)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if spelling == "old":
        respell_rope(folder / "config.json")
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": EOS if name != "opt-pre" else 2}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    note = "float32, CPU, eager attention, no cache; greedy without stopping at eos"
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    lines = ",\n".join("  " + json.dumps(result) for result in results)
    (folder / "goldens.json").write_text(
        f'{{"note": {json.dumps(note)}, "versions": {json.dumps(versions)}, "seed": {seed}, '
        f'"smallest_margin": {smallest:.5f},\n "results": [\n{lines}\n]}}\n')
    print(f"{name}: seed {seed}, smallest margin {smallest:.4f}, least distinct ids {varied}")
    return model


def interleave(weight, n_heads):
    """Rows of each head in the order 0, d/2, 1, d/2+1, ...: the order of llama GGUF files."""
    rows, rest = weight.shape[0], weight.shape[1:]
    return weight.reshape(n_heads, 2, rows // n_heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def llama3_divisors(config):
    """What each rotary frequency is divided by, from transformers' own frequencies."""
    rope = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
    plain = 1.0 / (config.rope_parameters["rope_theta"] ** steps)
    return (plain / rope.inv_freq).numpy().astype(np.float32)


GGUF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight", "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight", "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def write_gguf(model, path, kind):
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(EOS[0])
    writer.add_eot_token_id(EOS[1])
    writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    for name, value in model.state_dict().items():
        weight = value.float().numpy()
        if name == "lm_head.weight":  # tied
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = np.ascontiguousarray(interleave(weight, heads))
        if name.startswith("model.layers."):
            _, _, layer, inner = name.split(".", 3)
            target = f"blk.{layer}.{GGUF_LAYER[inner]}"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight",
                      "model.norm.weight": "output_norm.weight"}[name]
        dtype = gguf.GGMLQuantizationType[kind if weight.ndim > 1 else "F32"]
        data = gguf.quantize(weight, dtype)
        writer.add_tensor(target, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    default = pathlib.Path(__file__).resolve().parent / "data" / "models"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=default)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    for name in MODELS:
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        model = make_model(name, folder)
        for file in folder.iterdir():
            file.chmod(0o644)
        if name == "llama-rope3":
            for kind in ("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
                write_gguf(model, output / f"{name}.{kind}.gguf", kind)


if __name__ == "__main__":
    main()
