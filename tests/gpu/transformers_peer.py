"""What Hugging Face transformers does on this GPU: Qwen2.5-0.5B's shape, random bf16 weights, 128
prompt and 128 generated tokens. Prints generated tokens per second of each run after a warm one."""
import argparse
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--batches", default="1,4,16,64")
parser.add_argument("--rounds", type=int, default=5)
arguments = parser.parse_args()

torch.manual_seed(1)
torch.backends.cuda.enable_cudnn_sdp(False)  # plans for each new length, for seconds
config = Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                     num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True)
with torch.device("cuda"):
    model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
model.generation_config.eos_token_id = None
for batch in map(int, arguments.batches.split(",")):
    prompt = torch.randint(0, 150000, (batch, 128), device="cuda")
    rates = []
    for _ in range(arguments.rounds + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=128,
                             min_new_tokens=128, do_sample=False)
        torch.cuda.synchronize()
        rates.append(batch * (out.shape[1] - 128) / (time.perf_counter() - begin))
    rates = sorted(rates[1:])
    print(f"transformers batch {batch}: {rates[0]:.1f} {rates[len(rates) // 2]:.1f} {rates[-1]:.1f}", flush=True)
