"""Prompts, stop strings and sampling parameters, as the field's tools have them.

EvalPlus: version 0.3.1, evalplus/codegen.py, provider/utility.py (make_raw_chat_prompt, EOS),
provider/base.py and provider/vllm.py (chat stops, 768 tokens, top_p 0.95 where it samples),
provider/openai.py and gen/util/openai_request.py (hosted models: no prefill, no stops).
Qwen: QwenLM/Qwen2.5-Coder, its evaluation of instruct models on EvalPlus's MBPP.
"""
import hashlib

MAX_TOKENS = 768
TEMPERATURE = 0.8  # EvalPlus's, where it samples
TOP_P = 0.95       # the same

INSTRUCTION = ("Please provide a self-contained Python script that solves the following problem "
               "in a markdown code block:")
PREFILL = ("Below is a Python script with a self-contained function that solves the problem and "
           "passes corresponding tests:\n```python\n")
EOS = ["<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint("]
STOPS = EOS + ["\n```\n"]

QWEN_SYSTEM = "You are an intelligent programming assistant to produce Python algorithmic solutions"
QWEN_INSTRUCTION = "Can you complete the following Python function?"
QWEN_PREFILL = "```python\n"
QWEN_STOPS = EOS + ["\n#", "\n```"]

HOSTED_SYSTEM = "You are a helpful assistant good at coding."


def evalplus_messages(task):
    text = f"{INSTRUCTION}\n```\n{task.prompt.strip()}\n```\n"
    return [{"role": "user", "content": text}, {"role": "assistant", "content": PREFILL}]


def qwen_messages(task):
    text = f"{QWEN_INSTRUCTION}\n```python\n{task.prompt}\n```\n"
    return [{"role": "system", "content": QWEN_SYSTEM}, {"role": "user", "content": text},
            {"role": "assistant", "content": QWEN_PREFILL}]


def hosted_messages(task):
    """For a chat endpoint, which takes no prefill."""
    return [{"role": "system", "content": HOSTED_SYSTEM},
            {"role": "user", "content": f"{INSTRUCTION}\n```python\n{task.prompt.strip()}\n```"}]


def chatml(messages, default_system):
    """The text of a prompt in the ChatML format, its last message left open to be continued."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": default_system}, *messages]
    closed = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages[:-1]]
    return "".join(closed) + f"<|im_start|>{messages[-1]['role']}\n{messages[-1]['content']}"


PROMPTS = {"evalplus": (evalplus_messages, STOPS), "qwen": (qwen_messages, QWEN_STOPS)}


def seed_of(task_id, draw):
    """Of a sampled request: by task and draw, so that no slot or order can change it."""
    return int.from_bytes(hashlib.sha256(f"{task_id}#{draw}".encode()).digest()[:4], "big")


def request(task, draw, prompt="evalplus", sampled=False):
    """A line of a batch file: an OpenAI chat request whose last message is the prefill."""
    messages, stops = PROMPTS[prompt]
    body = {"messages": messages(task), "max_tokens": MAX_TOKENS, "temperature": 0, "stop": stops}
    if sampled:
        body.update(temperature=TEMPERATURE, top_p=TOP_P, seed=seed_of(task.task_id, draw))
    return {"custom_id": f"{task.task_id}#{draw}", "method": "POST", "url": "/v1/chat/completions",
            "body": body}
