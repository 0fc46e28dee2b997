#!/usr/bin/env python3
"""Makes tests/data/text: small tokenizers, Unicode edge cases with their ids, and rendered chats.

    python tests/make_text_goldens.py --models DIR

needs transformers, tokenizers, sentencepiece and gguf (see `versions` in edge_ids.json for those used). DIR holds
SmolLM2-135M-Instruct.Q4_1.gguf and qwen2.5-coder-0.5b-instruct-q4_k_m.gguf. What it writes:

    <style>/tokenizer.json      trained here on TRAINING: gpt2, opt, llama3, qwen2, smollm, and with
                                sentencepiece: llama2, mistral, metaspace
    llama2/pieces.json          the last three's pieces, scores and types, as a GGUF file has them
    edge_cases.json             texts; {"unit", "times", "tail"} stands for a long one
    edge_ids.json               per tokenizer the ids of every text; {"count", "fnv"} for a long one;
                                "sentencepiece": null where a text has special tokens
    decode.json                 per style random ids and what they decode to
    chat.json                   template, messages, prompt

transformers reads a GGUF file's Qwen2 tokenizer without the NFC of the published tokenizer.json; it
is compared as such. It also ignores the pre-tokenizer name "smollm", so the Digits step of the
published SmolLM2 tokenizer.json is put in here.
"""

import argparse
import io
import json
import pathlib
import random

import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

TRAINING = """
The miller keeps the gate of the headrace open while the wheel turns, and shuts it when the stones
are to be dressed. Water that isn't needed goes over the weir; it's the same water, but it does not
work. We've seen wheels that'll run for a hundred years, and they're turning still. I'd say 1234 or
12345 sacks in 2024, at 3.50 each. Don't you think he'd know? I'm sure she'll tell us.
def turn(wheel, speed=10):
    if speed > 100:
        raise ValueError("too fast")
    return [wheel.step(i) for i in range(speed)]
int main() { return 0; }  // nothing    to do
Das Mühlrad dreht sich, große Räder drehen langsam. Où est le café ? À côté de la rivière.
Вода течёт по каналу, и колесо вращается. 水车转动，水流不息。水車が回る。물레방아가 돈다.
الماء يجري في القناة. जल नहर में बहता है। Το νερό κυλά. Tiếng Việt có nhiều dấu.
"""

WHITESPACE = [
    " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f",
    "\x85", "\u00a0", "\u1680", "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028",
    "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff",
]  # fmt: skip
ATOMS = WHITESPACE + [
    "a", "The", "wheel", "water", " the", "'s", "'S", "'t", "'T", "'re", "'RE", "'rE", "'ve", "'VE",
    "'m", "'M", "'ll", "'LL", "'lL", "'d", "'D", "'\u017f", "\u2019s", "''", "'", "'x", "I", "don",
    "0", "7", "42", "123", "1234", "1234567", "\u0663\u0664", "\u0967\u0968\u0969", "\u00bd",
    "\u00b2", "\u2167", "\u2460", "\u3007", "\U0001d7d8", "\u5341", "\u09f4", "\u12ab",
    "\u6c34\u8f66", "\u6c34\u8eca\u304c", "\u30ab\u30bf", "\ubb3c\ub808", "\u1112\u1161\u11ab",
    "\U0001f642", "\U0001f469\u200d\U0001f4bb", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd",
    "\u2764\ufe0f", "1\ufe0f\u20e3", "\u00e9", "e\u0301", "a\u0323\u0307", "a\u0307\u0323",
    "\u212b", "\u2126", "\ufb01", "\u0344", "\u1e9b\u0323", "\u0958", "\u0f77", "\uac00\u11a8",
    "o\u0308\u0304", "\u0301", "\u0345\u0301", "\u0600", "\u0627\u0644", "\u05e9\u05dc", "\u0e44\u0e17",
    "\x00", "\x01", "\x07", "\x08", "\x1b", "\x7f", "\x80", "\x9f", "\u00ad", "\u061c", "\u200c",
    "\u200d", "\u200e", "\u202e", "\ufffd", "\uffff", "\ufdd0", "\U0010ffff", "\ue000", "\U000e0041",
    "!", "...", "--", "_", "__init__", "(", ")", "[]", "{}", "<", ">", "|", "#", "$", "\u20ac", "%",
    "+=", "\u2212", "\u00d7", "`", "```", "\u00ab", "\u3002", "\uff0c", "\u00b7", "\\", "\\n", "/",
    "ß", "ẞ", "\u0130", "\u0131", "\u01c5", "\u02b0", "\u00aa", "\u1d2c", "\u212a", "\u24b6",
    "\U0001c89a", "\u1c89", "\ua7cb", "\U00010d4a", "\U00010d40", "\U000116d0", "\U00011de0",
    "\U00016ff4", "\U00031350", "\U0002ebf0", "\U0001e4d0", "\U0001fae9", "\u0897", "\U00011930",
    "\U00011935", "\u1acf", "\u08d3", "\u1715", "\U00010efd", "\U00013455",
]  # fmt: skip
MARKS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\n", " <|im_end|> ", "<|im_end|",
    "<|begin_of_text|>", "<|eot_id|>", "</s>", "<mask>", "  <mask>  ", "<tool_call>", "</tool_call>",
    "<keep>", "\u3000<keep>\n", "lone", "alone", "lone wheel", "\u00e9lan", "e\u0301lan", "\u00f4te",
    "o\u0302te", "<repo_name>", "<|fim_prefix|>", "<both>", "  <both> \t", "<|x|>", "<|x|><|x|y|>",
]  # fmt: skip
HAND = [
    "", " ", "  ", "\n", " \n", "\n ", "a", " a", "  a", "a ", "a  ", "a  b", "a   b", "\ta", " \ta",
    "a\n b", "a \n b", "a\r\nb", "a\r\n\r\nb", "a\n\n\nb", "  \n  \n  b", "a\r\rb", "\r\n\r\n  x",
    "it's IT'S it'S He'LL we'Ve I'M i'd I'D you're YOU'RE can't CAN'T o'clock 'tis '90s",
    "it'\u017f THE'\u017f 's'\u017f", "\u2019s don\u2019t", "'s't're've'm'll'd", "'S'T'RE'VE'M'LL'D",
    "1 12 123 1234 12345 123456 1234567 1,234.56 3.14e-10 0x7f 1st 2nd v1.2.3 2024-01-02T03:04:05Z",
    "a1b22c333d4444", "\u0661\u0662\u0663\u0664 \u0967\u0968\u0969\u096a \u0e51\u0e52\u0e53\u0e54",
    "\u216b \u00bc\u00bd\u00be \u00b9\u00b2\u00b3 \u2474\u2475 \u4e00\u4e8c\u4e09 \u3021\u3022",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "cafe\u0301 na\u00efve Zo\u00eb \u0041\u030a\u0301 q\u0307\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323",
    "\u1100\u1161\u11a8\u1100\u1161 \uac01", "\u0928\u093f\u092e\u093f \u0b95\u0bca", "\u0915\u093c",
    "x\u180ey \u180e \u180e\u180e a\u180e\n", "\ufeffBOM \ufeff\ufeff", "a\u00a0b\u00a0\u00a0c",
    "nul\x00byte \x00\x00 \x00a", "\x1b[31mred\x1b[0m", "tab\tsep\t\tend\t", "\u2028line\u2029par",
    "def f(x):\n    return x  # comment\n\n\nclass A:\n\tpass\n", "#include <a.h>\r\n\r\nint x;\r\n",
    "<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_start|><|im_end|>", "a<|im_end|>b <|im_end|> c\n<|im_end|>\nd", "<|im_end|>\u0301",
    "e<|im_end|>\u0301", "<<|im_end|>>", "<|im_<|im_end|>end|>", "<|IM_END|>", "< |im_end|>",
    "<mask>", " <mask>", "a <mask> b", "a  <mask>  b", "a\n<mask>\nb", "<mask> <mask>", "<mask><mask>",
    "a\u3000<mask>\u00a0b", "<keep>  <mask>  <keep>", "a  <keep>  b", "a <both> <both> b", "<both>  ",
    "lone", "a lone b", "alone", "lonely", "lone1", "lone_", "lone\u0301", "(lone)", "lone lone lone",
    "\u00e9lone", "lone\u200d", "lone\u24b6", "lone\u00b2", "\u5341lone",
    "\u00e9lan", "e\u0301lan", "an e\u0301lan of \u00e9lan", "o\u0302te \u00f4te", "\u00f4te",
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "http://example.org/a?b=c&d=%20#e", "user@example.org", "C++20 & C#; A/B; 50% off!!! (really?)",
    "$100 \u20ac20 \u00a35 \u00a5", "== != <= >= -> => ::  ...  ---", "\u201cquoted\u201d \u2018single\u2019",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u4f60\u597d\uff0c\u4e16\u754c\uff01123\u6c34",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "a\u0301" * 12,
    "\u0323\u0301" * 20, "wheelwheelwheel", "WHEEL Wheel wHEEL", "\uff11\uff12\uff13 \uff21\uff22",
]  # fmt: skip
LONG = [  # unit, times, tail
    ("a", 3000, ""), (" ", 3000, ""), (" ", 3000, "x"), ("\n", 3000, "x"), (" \n", 1500, "x"),
    ("7", 3000, ""), ("!", 3000, ""), ("\u6c34", 1500, ""), ("wheel", 1000, ""), ("a\u0301", 1500, ""),
    ("\u0301\u0323", 1500, ""), ("\t ", 1500, "\r\n"), ("\U0001f642", 700, ""), ("ab1 ", 800, ""),
    ("\u00a0", 1000, "a"), ("<|im_end|>", 300, ""), ("'s", 1000, ""), ("\x00", 1000, ""),
]  # fmt: skip


def edge_cases():
    rng = random.Random(20240607)
    texts = list(HAND) + ["a" + w + "b" for w in WHITESPACE] + [w + w for w in WHITESPACE]
    texts += [" " + w + "b\n" for w in WHITESPACE]
    for _ in range(240):
        texts.append("".join(rng.choice(ATOMS) for _ in range(rng.randint(2, 9))))
    for _ in range(80):
        pool = ATOMS + MARKS * 4
        texts.append("".join(rng.choice(pool) for _ in range(rng.randint(2, 6))))
    return texts


def train(split, normalizer=None, prefix_space=False, size=640):
    tok = Tokenizer(models.BPE())
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = split
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator([TRAINING], trainer)
    return tok


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def bos_template(token, tok):
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, tok.token_to_id(token))]
    )


def small_tokenizers():
    """style -> (tokenizer.json as an object, tokenizer_config.json)"""
    out = {}
    # GPT-2: merges as "a b".
    tok = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.add_special_tokens(["<|endoftext|>"])
    spec = json.loads(tok.to_str())
    spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    out["gpt2"] = (spec, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    # OPT, as transformers saves it, with a prefix space and every kind of added token.
    tok = train(pre_tokenizers.ByteLevel(add_prefix_space=True))
    tok.add_special_tokens(["</s>", AddedToken("<mask>", lstrip=True, special=True)])
    tok.add_tokens(
        [
            AddedToken("<keep>", rstrip=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=True),
            AddedToken("lone", single_word=True, normalized=False),
            AddedToken("<|x|>", normalized=True),
            AddedToken("<|x|><|x|", normalized=True),
        ]
    )
    tok.post_processor = bos_template("</s>", tok)
    bos = {"content": "</s>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    out["opt"] = (json.loads(tok.to_str()), {"bos_token": bos, "eos_token": bos})
    # Llama-3: whole pre-tokens that no merges lead to.
    tok = train(split_then_bytes(LLAMA3))
    tok.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    tok.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), bos_template("<|begin_of_text|>", tok)]
    )
    spec = json.loads(tok.to_str())
    spec["model"]["ignore_merges"] = True
    spec["model"]["merges"] = [m for m in spec["model"]["merges"] if "".join(m) not in ("Ġwheel", "Ġwater", "The")]
    out["llama3"] = (spec, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
    # Qwen2: NFC, tokens looked for before and after normalising.
    tok = train(split_then_bytes(QWEN2), normalizers.NFC())
    tok.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    tok.add_tokens([AddedToken("e\u0301lan", normalized=True), AddedToken("\u00f4te", normalized=False)])
    out["qwen2"] = (json.loads(tok.to_str()), {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False})
    # SmolLM2: digits one by one.
    split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok = train(split)
    tok.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    out["smollm"] = (json.loads(tok.to_str()), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    return out


def train_sentencepiece():
    """BPE with byte fallback, as Llama-2's was made."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING.splitlines()), model_writer=model, model_type="bpe", vocab_size=640,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", split_digits=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pieces_of(sp):
    """[piece, score, type of a GGUF file] by id."""
    kinds = [(sp.is_unknown, 2), (sp.is_control, 3), (sp.is_unused, 5), (sp.is_byte, 6)]
    return [[sp.id_to_piece(i), sp.get_score(i), next((kind for is_it, kind in kinds if is_it(i)), 1)]
            for i in range(sp.get_piece_size())]


def merges_by_score(pieces):
    """All pairs of pieces that make a piece, as transformers converts such vocabularies."""
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    merges = []
    for piece, score, _ in pieces:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = sorted(pair for pair in pairs if pair[0] in vocab and pair[1] in vocab)
        merges += [(pair, score) for pair in sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    return [pair for pair, _ in sorted(merges, key=lambda m: (m[1], len(m[0][0]), len(m[0][1])), reverse=True)]


def sentencepiece_tokenizers(pieces):
    """style -> (tokenizer.json as an object, tokenizer_config.json)"""
    mark = "\u2581"
    joined = decoders.Sequence(
        [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    legacy = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    styles = {
        "llama2": (legacy, None, joined),
        "mistral": (None, pre_tokenizers.Metaspace(mark, prepend_scheme="first", split=False), joined),
        "metaspace": (None, pre_tokenizers.Metaspace(mark, prepend_scheme="always", split=True),
                      decoders.Metaspace(mark, prepend_scheme="always")),
    }
    out = {}
    for style, (normalizer, split, decoder) in styles.items():
        vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
        model = models.BPE(vocab, merges_by_score(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tok = Tokenizer(model)
        if normalizer:
            tok.normalizer = normalizer
        if split:
            tok.pre_tokenizer = split
        tok.decoder = decoder
        tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
        tok.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("wheel wheel", normalized=True)])
        tok.post_processor = bos_template("<s>", tok)
        out[style] = (json.loads(tok.to_str()), {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    return out


def sentencepiece_ids(sp, texts):
    def ids(text):
        return None if any(t in text for t in ("<unk>", "<s>", "</s>")) else sp.encode(text)

    out = [ids(text) for text in texts]
    for unit, times, tail in LONG:
        long = ids(unit * times + tail)
        out.append({"count": len(long), "fnv": fnv(long)})
    return out


def real_tokenizers(folder):
    def load(name):
        return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)

    smol = load("SmolLM2-135M-Instruct.Q4_1.gguf")
    smol.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    qwen = load("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    return {"SmolLM2-135M-Instruct.Q4_1.gguf": smol, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": qwen}


def fnv(ids):
    value = 0xCBF29CE484222325
    for i in ids:
        for byte in i.to_bytes(4, "little"):
            value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def ids_of(tok, texts):
    out = [tok.encode(t, add_special_tokens=False).ids for t in texts]
    for unit, times, tail in LONG:
        ids = tok.encode(unit * times + tail, add_special_tokens=False).ids
        out.append({"count": len(ids), "fnv": fnv(ids)})
    return out


def decoded(tok, rng):
    out = []
    for _ in range(60):
        ids = [rng.randrange(tok.get_vocab_size()) for _ in range(rng.randint(1, 12))]
        if tok.model.byte_fallback:  # whole characters, and no token that is spelled as normalised
            ids = [i for i in ids if not 3 <= i < 259 and i + 1 < tok.get_vocab_size()]
        elif rng.random() < 0.5:  # single bytes: mostly broken UTF-8
            ids = [rng.randrange(256) for _ in ids]
        out.append({"ids": ids, "all": tok.decode(ids, False), "no_special": tok.decode(ids, True)})
    return out


PLAIN_CHATML = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TEMPLATES = {
    "chatml": (PLAIN_CHATML, "<s>"),
    "chatml with a guard": ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}" + PLAIN_CHATML, "<s>"),
    "chatml with bos": ("{{ bos_token }}" + PLAIN_CHATML, "<s>"),
    "chatml, lines and double quotes": ('{%- for message in messages %}\n    {{- "<|im_start|>" + message.role + "\\n" + message.content | trim + "<|im_end|>\\n" }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- "<|im_start|>assistant\\n" }}\n{%- endif %}\n', ""),
    "chatml as text": ("{% for message in messages %}\n<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}", ""),
    "chatml, open at the end": ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']}}{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}", ""),
    "llama3": ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}", "<|begin_of_text|>"),
}  # fmt: skip
SYSTEM = {"role": "system", "content": "You are a miller.\nAnswer briefly."}
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [SYSTEM, {"role": "user", "content": "  spaces around \n"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "empty system"}],
    [SYSTEM, {"role": "user", "content": "one"}, {"role": "assistant", "content": "two\n"}, {"role": "user", "content": "\u3000three\x1f"}],
    [{"role": "user", "content": "one"}, {"role": "system", "content": "late"}, {"role": "user", "content": "two"}],
    [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2,"}],
    [SYSTEM, {"role": "user", "content": "Code"}, {"role": "assistant", "content": "\n```python\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": " d "}],
]  # fmt: skip


def chats(templates, tok):
    out = []
    for name, (text, bos) in templates.items():
        tok.bos_token = bos or None
        for messages in CHATS:
            prefill = messages[-1]["role"] == "assistant"
            prompt = tok.apply_chat_template(
                messages, chat_template=text, tokenize=False, add_generation_prompt=not prefill, continue_final_message=prefill
            )
            out.append({"template": name, "messages": messages, "prompt": prompt})
    table = {name: {"text": text, "bos_token": bos} for name, (text, bos) in templates.items()}
    return {"templates": table, "chats": out}


def write(path, value, indent=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    separators = (",", ":") if indent is None else None
    path.write_text(json.dumps(value, ensure_ascii=True, indent=indent, separators=separators) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", required=True)
    models_folder = parser.parse_args().models
    out = pathlib.Path(__file__).parent / "data" / "text"

    texts = edge_cases()
    long = [{"unit": u, "times": n, "tail": t} for u, n, t in LONG]
    write(out / "edge_cases.json", {"texts": texts, "long": long})
    ids = {"versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__}}
    random_ids = {}
    rng = random.Random(7)
    sp = train_sentencepiece()
    write(out / "llama2" / "pieces.json", pieces_of(sp))
    ids["sentencepiece"] = sentencepiece_ids(sp, texts)
    for style, (spec, config) in {**small_tokenizers(), **sentencepiece_tokenizers(pieces_of(sp))}.items():
        write(out / style / "tokenizer.json", spec)
        write(out / style / "tokenizer_config.json", config)
        tok = Tokenizer.from_file(str(out / style / "tokenizer.json"))
        ids[style] = ids_of(tok, texts)
        random_ids[style] = decoded(tok, rng)
    real = real_tokenizers(models_folder)
    for name, tok in real.items():
        ids[name] = ids_of(tok.backend_tokenizer, texts)
    write(out / "edge_ids.json", ids)
    write(out / "decode.json", random_ids)
    templates = dict(TEMPLATES)
    for name, tok in real.items():
        templates[name] = (tok.chat_template, tok.bos_token)
    write(out / "chat.json", chats(templates, real["SmolLM2-135M-Instruct.Q4_1.gguf"]), indent=1)


if __name__ == "__main__":
    main()
