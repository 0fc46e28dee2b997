"""What a user types: help, inspect, tokenize, config files, and what each mistake says."""
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import time
import unittest

import harness
import wide_models

BAD_MODEL, DOES_NOT_FIT, IO = 65, 73, 74
# perf/quality.txt on the SmolLM2 file: transformers in float32, windows of 512 tokens.
GOLDEN_PERPLEXITY, GOLDEN_TOKENS = 22.994517, 2246
TINY = harness.TINY / "llama-gqa"  # safetensors, 3 layers, no tokenizer
TINY_GGUF = harness.TINY / "llama-rope3.F32.gguf"
REQUEST = {"prompt": [1, 2, 3], "max_tokens": 3}


CONFIGS = pathlib.Path(__file__).parents[2] / "cluster-configs"
COMMANDS = ("bench", "clean", "generate", "inspect", "perplexity", "plan", "synthesize", "tokenize")


class CommandTest(harness.ProgramTest):
    def run_text(self, *arguments, **options):
        """What a command writes to standard output."""
        return self.run_program(*arguments, **options).stdout()

    def refused(self, code, *arguments, says, **options):
        """A command ends with this code and a message that holds every text of `says`."""
        job = self.run_program(*arguments, expect=code, **options)
        for text in says:
            self.assertIn(text, job.log())
        self.assertEqual("", job.stdout())
        return job.log()

    def batch(self, *requests):
        path = self.folder / "in.jsonl"
        harness.write_requests(path, requests or [REQUEST])
        return path

    def config(self, text):
        path = self.folder / "options.toml"
        path.write_text(text)
        return path


class Help(CommandTest):
    def test_program(self):
        text = self.run_text("--help")
        for command in COMMANDS:
            self.assertIn(f"\n  {command} ", text)
        self.assertIn("Usage: headrace ", text)

    def test_subcommands_have_examples(self):
        for command in COMMANDS:
            self.assertIn("Example", self.run_text(command, "--help"))

    def test_every_option_is_in_the_config_readme(self):
        sections = (CONFIGS / "README.md").read_text().split("\n## Keys of ")[1:]
        keys = {section.partition("\n")[0]: re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
                for section in sections}
        common = keys.pop("generate, bench and plan")
        self.assertEqual(["bench", "generate", "plan"], sorted(keys))
        for command, own in keys.items():
            options = re.findall(r"^ +--([a-z-]+)", self.run_text(command, "--help"), re.MULTILINE)
            self.assertEqual(sorted(options), sorted([*common, *own, "config"]), command)

    def test_version(self):
        self.assertRegex(self.run_text("--version"), r"^headrace \d+\.\d+\.\d+ \(.+\)\n$")


class Mistakes(CommandTest):
    def test_no_subcommand(self):
        self.refused(harness.USAGE, says=["headrace --help"])

    def test_unknown_subcommand(self):
        self.refused(harness.USAGE, "generat", says=["generat is not a subcommand"])

    def test_unknown_option(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--bogus",
                     says=["--bogus", "headrace generate --help"])

    def test_numbers(self):
        for option, value in (("--max-tokens", "x"), ("--max-tokens", "0"), ("--top-p", "1.5"),
                              ("--temperature", "-1"), ("--threads", "0")):
            with self.subTest(option=option):
                self.refused(harness.USAGE, "generate", "--model", TINY, option, value,
                             says=[f"{option}: {value} is not a number"])

    def test_no_model(self):
        self.refused(harness.USAGE, "generate", "--prompt", "x", says=["--model"])

    def test_no_input_and_both(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, says=["--input", "--prompt"])
        self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--input",
                     self.batch(), says=["--input", "--prompt"])

    def test_prompt_that_is_not_utf8(self):
        for chat in ([], ["--chat"]):
            self.refused(harness.USAGE, "generate", "--model", TINY, *chat, "--prompt", os.fsdecode(b"caf\xe9"),
                         says=["--prompt is not valid UTF-8"])

    def test_no_output(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--input", self.batch(),
                     says=["--output"])

    def test_resume_of_standard_output(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--input", self.batch(),
                     "--output", "-", "--resume", says=["--resume", "--output"])

    def test_more_threads_than_the_system_has(self):
        for command in (["generate", "--input", self.batch(), "--output", "-"], ["plan"]):
            done = subprocess.run(
                [harness.program(), *map(str, command), "--model", TINY, "--threads", "5000"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)))
            self.assertEqual(69, done.returncode, done.stderr)
            self.assertRegex(done.stderr, "of 5000 compute threads only [0-9]+ .*--threads")

    def test_size(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--host-memory",
                     "1XB", says=["--host-memory 1XB", "900MiB"])

    def test_device(self):
        for wrong in ("cuda:", "cuda:x", "gpu", "cuda:1000"):
            self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--device", wrong,
                         says=["--device", wrong])
        self.refused(69, "bench", "--model", TINY, "--device", "cuda:999", says=["--device"])
        self.refused(harness.USAGE, "bench", "--model", TINY, "--math", "bf16", says=["--math", "f16", "int8"])
        for device in ("cuda", "cuda:0"):
            self.refused(harness.USAGE, "bench", "--model", TINY, "--math", "int8", "--device", device,
                         says=["--math int8", "CPUs", f"--device {device}"])
        for model, useless in ((TINY, True), ("synthetic:tiny-llama:q8", False)):
            job = self.run_program("bench", "--model", model, "--math", "int8", "--prompt-tokens", 4,
                                   "--generate-tokens", 2, "--batch", 1)
            self.assertEqual(useless, "--math int8 changes nothing here" in job.log())
        self.refused(harness.USAGE, "perplexity", "--model", TINY, "--text", __file__, "--math", "f16",
                     says=["--math", "int8"])
        self.refused(harness.USAGE, "bench", "--model", TINY, "--link", "tcp", says=["--link", "nccl"])
        for wrong in ("sometimes", "1.5", "-1"):
            self.refused(harness.USAGE, "bench", "--model", TINY, f"--host-attention={wrong}",
                         says=["--host-attention", wrong, "auto, off, on"])
        for option in ("--device-memory", "--device-weights", "--device-kv"):
            self.refused(harness.USAGE, "bench", "--model", TINY, option, "much", says=[option, "900MiB"])

    def test_target(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--target", "neon",
                     says=["--target", "neon", "avx2"])

    def test_chat_template(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--chat-template",
                     "mistral", says=["--chat-template mistral", "chatml", "llama3"])

    def test_input_that_is_not_there_leaves_no_output(self):
        output = self.folder / "out.jsonl"
        missing = self.folder / "missing.jsonl"
        self.refused(harness.USAGE, "generate", "--model", TINY, "--input", missing, "--output",
                     output, says=[str(missing), "Check the path"])
        self.assertFalse(output.exists())

    def test_output_that_cannot_be_written(self):
        for output, cure in ((self.folder / "no" / "out.jsonl", "mkdir"), (self.folder, "file")):
            with self.subTest(output=output):
                self.refused(harness.USAGE, "generate", "--model", TINY, "--input", self.batch(),
                             "--output", output, says=[str(output), cure])

    def test_full_output(self):
        first = ["generate", "--model", TINY]
        for last in (["--input", self.batch(), "--output", "-"],
                     ["--model", harness.real_model(harness.SMOL), "--prompt", "x", "--max-tokens", 1]):
            command = [harness.program(), *map(str, first + last)]
            with self.subTest(last=last), open("/dev/full", "w") as full:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full,
                                      stderr=subprocess.PIPE, text=True, timeout=60)
                self.assertEqual(IO, done.returncode, done.stderr)
                self.assertIn("No space left", done.stderr)

    def test_full_output_of_every_command(self):
        smol = harness.real_model(harness.SMOL)
        for command in (["--version"], ["--help"], ["plan", "--help"], ["plan", "--model", TINY],
                        ["inspect", TINY], ["inspect", TINY_GGUF, "--tensors"],
                        ["tokenize", "--model", smol, "Hello"], ["tokenize", "--model", smol, "Hello " * 3000],
                        ["doctor", "--disk", self.folder], ["clean", "--disk", self.folder]):
            for ranks in ([], ["mpirun", "-np", "2", "--bind-to", "none", "--oversubscribe"]):
                if ranks and command[0] != "plan":
                    continue
                with self.subTest(command=command, ranks=ranks), open("/dev/full", "w") as full:
                    # Of mpirun, only rank 0's own.
                    own = ["sh", "-c", 'exec "$@" > /dev/full', "sh"] if ranks else []
                    done = subprocess.run([*ranks, *own, harness.program(), *map(str, command)],
                                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                          stdout=None if ranks else full, timeout=60,
                                          env={**os.environ, "TMPDIR": str(self.folder),
                                               "OMPI_ALLOW_RUN_AS_ROOT": "1",
                                               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
                    self.assertEqual(IO, done.returncode, done.stderr)
                    self.assertIn("writing to standard output failed", done.stderr)

    def test_what_is_refused_has_done_nothing(self):
        """No offload file is built for it, and the files of the run before are as they were."""
        model, disk = wide_models.write(self.folder / "llama", "llama"), self.folder / "disk"
        kept = {name: self.folder / name for name in ("out.jsonl", "report.json", "trace.json")}
        for path in kept.values():
            path.write_text(f"the {path.name} of yesterday")
        common = ["generate", "--model", model, "--input", self.batch(), "--host-memory", "24MiB",
                  "--disk", disk, "--report", kept["report.json"], "--trace", kept["trace.json"]]
        new, no_folder = self.folder / "new.jsonl", self.folder / "no" / "x"
        for wrong, says in ((["--output", kept["out.jsonl"]], "already holds data"),
                            (["--output", kept["out.jsonl"], "--resume"], "manifest.json is not there"),
                            (["--output", no_folder], "its directory does not exist"),
                            (["--output", new, "--trace", no_folder], "Make its directory"),
                            (["--output", new, "--report", no_folder], "Make its directory"),
                            (["--output", new, "--chat-template", "none"], "--chat-template none")):
            for ranks in (None, 2):
                with self.subTest(wrong=wrong, ranks=ranks):
                    self.refused(harness.USAGE, *common, *wrong, says=[says], ranks=ranks)
                    self.assertEqual([], list(disk.iterdir()) if disk.exists() else [])
                    self.assertFalse(new.exists())
        fresh = self.folder / "fresh.json"
        self.refused(DOES_NOT_FIT, *common, "--output", new, "--host-memory", "1MiB", "--trace", fresh, says=[""])
        self.assertFalse(fresh.exists() or new.exists())
        for path in kept.values():
            self.assertEqual(f"the {path.name} of yesterday", path.read_text())
        self.run_program(*common, "--output", new)
        self.assertTrue(list(disk.iterdir()), "a run that is not refused builds one")
        for name in ("report.json", "trace.json"):
            json.loads(kept[name].read_text())

    def test_output_of_another_run(self):
        output = self.folder / "out.jsonl"
        self.generate(TINY, [REQUEST], output=output)
        self.refused(harness.USAGE, "generate", "--model", TINY, "--input", self.batch(),
                     "--output", output, says=[str(output), "--resume"])

    def test_does_not_fit(self):
        log = self.refused(DOES_NOT_FIT, "generate", "--model", TINY, "--prompt", "x",
                           "--host-memory", "200KiB",
                           says=["weights", "activations", "KV cache", "budget       200.0 KiB"])
        cure = log.partition("--host-memory ")[2].split()[0]
        self.run_program("generate", "--model", TINY, "--input", self.batch(), "--output", "-",
                         "--host-memory", cure)


class Plan(CommandTest):
    """headrace plan, on a model whose weights can be read from disk."""
    def setUp(self):
        super().setUp()
        self.model = wide_models.write(self.folder / "llama", "llama")
        self.disk = self.folder / "disk"
        self.common = ["plan", "--model", self.model, "--disk", self.disk, "--max-batch", 8,
                       "--tokens", 200]

    def test_in_memory(self):
        text = self.run_text(*self.common)
        self.assertRegex(text, r"^stage 1 of 1 on \S+\n  layers +0-11, embedding, head\n")
        for line in (r"weights +31\.\d MiB: 31\.\d MiB in memory, 0 B read from disk per step",
                     r"KV cache .* 0 of them on disk", "activations ", "memory ",
                     "sequences +up to 8 in flight", r"expected .*8 sequences: .* tokens/s"):
            self.assertRegex(text, rf"\n  {line}")
        for word in ("\n  disk", "\n  ring"):
            self.assertNotIn(word, text)
        self.assertFalse(self.disk.exists())

    def test_on_disk_and_nothing_is_built(self):
        for ranks, stages in ((None, ["0-11, embedding, head"]), (2, ["0-5, embedding", "6-11, head"])):
            with self.subTest(ranks=ranks):
                text = self.run_text(*self.common, "--host-memory", "14MiB", "--split",
                                     "6,6" if ranks else "12", ranks=ranks)
                self.assertEqual(stages, re.findall(r"^  layers +(.*)$", text, re.MULTILINE))
                self.assertRegex(text, r"\n  ring +[1-9].* for weights on their way\n")
                self.assertRegex(text, r"\n  disk +\d.* measured at \d+ MB/s")
                self.assertRegex(text, r"weights .*, [1-9][\d.]* MiB read from disk per step")
                memory = [float(n) for n in re.findall(r"\n  memory +([\d.]+) MiB", text)]
                self.assertEqual(len(stages), len(memory))
                self.assertLessEqual(max(memory), 14)
                self.assertEqual([], list(self.disk.iterdir()))

    def test_what_it_advises_is_enough(self):
        for cause, option, more in (
                (["--host-memory", "1MiB"], "--host-memory", []),
                (["--host-memory", "1MiB", "--disk-budget", 0], "--host-memory", ["--disk-budget", 0]),
                (["--host-memory", "20MiB", "--kv-memory", 4096], "--kv-memory",
                 ["--host-memory", "20MiB"])):
            with self.subTest(cause=cause):
                log = self.refused(DOES_NOT_FIT, *self.common, *cause,
                                   says=["weights", "activations", "KV cache", option])
                advice = re.findall(rf"{option} (\d+)MiB", log.splitlines()[-1])
                self.assertEqual(1, len(advice), log)
                text = self.run_text(*self.common, *more, option, f"{advice[0]}MiB")
                self.assertIn("stage 1 of 1", text)

    def test_kv_memory_sends_pages_to_disk(self):
        text = self.run_text(*self.common, "--max-batch", 24, "--tokens", 416, "--kv-memory", "24MiB")
        on_disk = int(re.search(r"(\d+) of them on disk", text)[1])
        self.assertGreater(on_disk, 0)
        kv = float(re.search(r"KV cache +([\d.]+) MiB in memory", text)[1])
        self.assertLessEqual(kv, 24)

    def test_what_the_prediction_is_for(self):
        """What comes of it is tested with fixed rates (prediction_test)."""
        for more, prompt in (([], 100), (["--prompt-tokens", 1], 1), (["--prompt-tokens", 199], 199)):
            self.assertRegex(self.run_text(*self.common, *more),
                             rf"\n  prediction +for sequences of 200 tokens, {prompt} of them the prompt's\n")
        self.refused(harness.USAGE, *self.common, "--prompt-tokens", 200, says=["--prompt-tokens", "--tokens"])

    def test_disk_budget(self):
        tight = [*self.common, "--host-memory", "14MiB", "--disk-budget"]
        self.assertIn("read from disk", self.run_text(*tight, "100MiB"))
        self.refused(DOES_NOT_FIT, *tight, "5MiB", says=["the disk is too small", "--disk-budget", "5.0 MiB there"])
        self.refused(DOES_NOT_FIT, *tight, "0", says=["host memory is too small"])

    def test_disk_that_cannot_be_used(self):
        (self.folder / "file").write_text("")
        for place in (self.folder / "file", self.folder / "file" / "below"):
            with self.subTest(place=place):
                self.refused(IO, *self.common, "--host-memory", "14MiB", "--disk", place,
                             says=[str(place), "--disk"])

    def test_default_directory(self):
        home = self.folder / "home"
        arguments = [*self.common, "--host-memory", "14MiB"]
        at = arguments.index("--disk")
        arguments[at:at + 2] = []
        done = subprocess.run([harness.program(), *map(str, arguments)], capture_output=True, text=True,
                              env={**os.environ, "XDG_CACHE_HOME": str(home)}, timeout=60)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertTrue((home / "headrace" / "offload").is_dir())

    def test_schedule(self):
        self.refused(harness.USAGE, *self.common, "--schedule", "lazy",
                     says=["--schedule", "lazy", "overlapped", "serial"])
        self.assertIn("expected", self.run_text(*self.common, "--schedule", "serial"))

    def test_sizes(self):
        for option in ("--kv-memory", "--disk-budget", "--host-memory"):
            with self.subTest(option=option):
                self.refused(harness.USAGE, *self.common, option, "many", says=[f"{option} many", "900MiB"])


class Models(CommandTest):
    def test_not_there(self):
        for command in ("inspect", "tokenize", "generate"):
            arguments = {"generate": ["--prompt", "x"], "tokenize": ["x"]}.get(command, [])
            with self.subTest(command=command):
                self.refused(BAD_MODEL, command, "--model", "/nowhere", *arguments,
                             says=["/nowhere", "Hugging Face directory"])

    def test_not_a_model(self):
        text = self.folder / "text"
        text.write_text("no model")
        self.refused(BAD_MODEL, "inspect", text, says=[str(text), "GGUF"])
        self.refused(BAD_MODEL, "inspect", self.folder, says=["config.json"])

    def test_torn_gguf(self):
        torn = self.folder / "torn.gguf"
        whole = TINY_GGUF.read_bytes()
        torn.write_bytes(whole[:len(whole) // 2])
        self.refused(BAD_MODEL, "generate", "--model", torn, "--prompt", "x", says=[str(torn)])

    def test_names_in_files_cannot_change_the_terminal(self):
        data = bytearray(TINY_GGUF.read_bytes())
        name = b"blk.1.ffn_down.weight"
        at = data.index(name)
        data[at:at + 6] = b"\x1b[2J\xc2\x9b"
        data[at + len(name) + 4 + 2 * 8] = 99  # its type, after two dimensions
        damaged = self.folder / "damaged.gguf"
        damaged.write_bytes(data)
        log = self.refused(BAD_MODEL, "inspect", damaged, says=['tensor "?[2J??ffn_down.weight" has type number 99'])
        self.assertNotIn("\x1b", log)
        self.assertNotIn("\x9b", log)

    def test_names_that_are_shown_cannot_change_the_terminal(self):
        data = TINY_GGUF.read_bytes()
        key = b"general.name"
        at = data.index(key) + len(key) + 4 + 8
        named = self.folder / "named.gguf"
        named.write_bytes(data[:at] + b"\x1b[2J" + data[at + 4:])
        job = self.run_program("inspect", named)
        self.assertRegex(job.stdout(), r"model +\?\[2J")
        request = json.dumps({"custom_id": "\x1b[2Jred", "method": "POST", "url": "/v1/nothing",
                              "body": {"prompt": "x"}})
        batch = self.folder / "in.jsonl"
        batch.write_text(request + "\n")
        job = self.run_program("generate", "--model", named, "--input", batch, "--output",
                               self.folder / "out.jsonl", expect=harness.SOME_FAILED)
        self.assertIn("?[2Jred", job.log())
        self.assertNotIn("\x1b[2J", job.log())

    def test_unknown_family(self):
        config = json.loads((TINY / "config.json").read_text())
        config.update(model_type="mamba", architectures=["MambaForCausalLM"])
        (self.folder / "config.json").write_text(json.dumps(config))
        self.refused(BAD_MODEL, "inspect", self.folder, says=["config.json", "mamba", "llama"])

    def test_broken_tokenizer(self):
        model = self.folder / "model"
        shutil.copytree(TINY, model)
        file = model / "tokenizer.json"
        tokenizer = json.loads((harness.DATA / "text" / "gpt2" / "tokenizer.json").read_text())
        tokenizer["model"]["merges"][3] = ["a", "zzzz"]
        for text, place in ((json.dumps(tokenizer), "merges[3]"), ("{", "at byte 2")):
            file.write_text(text)
            self.refused(BAD_MODEL, "generate", "--model", model, "--prompt", "x",
                         says=[str(file), place, "etch the model's files again"])
        # 640 tokens beside an embedding of 300.
        shutil.copy(harness.DATA / "text" / "gpt2" / "tokenizer.json", file)
        ids = json.loads(self.run_text("tokenize", "--model", model, " the of and"))
        self.assertGreater(max(ids), 299)
        for chat in ([], ["--chat", "--chat-template", "chatml"]):
            job = self.run_program("generate", "--model", model, "--prompt", " the of and", *chat,
                                   expect=harness.SOME_FAILED)
            self.assertEqual("", job.stdout())
            self.assertRegex(job.log(), "the tokenizer gives token id [3-6].., .*vocabulary of 300; tokenizer")
        file.rename(model / "vocab.json")
        self.refused(BAD_MODEL, "generate", "--model", model, "--prompt", "x",
                     says=[str(file), "missing", "save_pretrained"])

    def test_unknown_shape(self):
        self.refused(BAD_MODEL, "inspect", "synthetic:nope", says=["nope", "opt-6.7b"])

    def test_inspect_directory(self):
        text = self.run_text("inspect", TINY)
        for line in ("layers       3", "safetensors", "vocabulary   300", "tokenizer    none", "BF16"):
            self.assertIn(line, text)

    def test_inspect_quantised(self):
        text = self.run_text("inspect", TINY, "--weights", "q4", "--kv", "q8")
        for line in ("G4         23 tensors", "BF16       7 tensors", "safetensors, weights q4",
                     "KV cache     120 B per token (q8"):  # 3 layers, K and V of 16 + 4 bytes each
            self.assertIn(line, text)
        low_bit = harness.TINY / "llama-rope3.Q4_0.gguf"
        self.refused(harness.USAGE, "inspect", low_bit, "--weights", "q8",
                     says=["Q4_0.gguf", "token_embd.weight", "--weights native"])

    def test_inspect_gguf_lists_tensors(self):
        text = self.run_text("inspect", TINY_GGUF, "--tensors")
        for word in ("GGUF v3", "F32", "token_embd.weight", "blk.0.attn_q.weight"):
            self.assertIn(word, text)

    def test_inspect_synthetic(self):
        text = self.run_text("inspect", "synthetic:opt-6.7b")
        for line in ("layers       32", "width        4096", "KV cache     512.0 KiB per token"):
            self.assertIn(line, text)

    def test_inspect_real(self):
        text = self.run_text("inspect", harness.real_model(harness.SMOL))
        for word in ("layers       30", "9 query, 3 key/value", "pattern smollm", "chat         chatml"):
            self.assertIn(word, text)


class Stages(CommandTest):
    def test_split_does_not_add_up(self):
        for split in ("1,1", "3", "1,2,1"):
            with self.subTest(split=split):
                self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--split",
                             split, ranks=2, says=[f"--split {split}", "3 layers"])

    def test_split_is_no_list(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--split", "1;2",
                     says=["--split 1;2", "10,14"])

    def test_more_ranks_than_layers(self):
        log = self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", ranks=4,
                           says=["at most 3 ranks", "rank 0 on "])
        self.assertEqual(1, log.count("at most 3 ranks"))

    def test_a_wrong_option_is_said_once(self):
        log = self.refused(harness.USAGE, "generate", "--model", TINY, "--bogus", ranks=3,
                           says=["--bogus"])
        self.assertEqual(1, log.count("--bogus"))


class Home(CommandTest):
    """~/ in paths, where no shell has replaced it."""

    def run_at_home(self, *arguments, code=0, home=None, **environment):
        environment = {**os.environ, "HOME": str(home or self.folder), **environment}
        done = subprocess.run([harness.program(), *map(str, arguments)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, env=environment)
        self.assertEqual(code, done.returncode, done.stderr)
        return done

    def test_every_path(self):
        (self.folder / "model").symlink_to(TINY)
        self.batch()
        self.config('model = "~/model"\ntrace = "~/trace.json"\n')
        self.run_at_home("generate", "--config=~/options.toml", "--input=~/in.jsonl", "--output", "~/out.jsonl",
                         "--report=~/report.json", "--disk=~/disk")
        for name in ("out.jsonl", "trace.json", "report.json"):
            self.assertTrue((self.folder / name).is_file(), name)
        self.run_at_home("bench", "--model=~/model", "--batch", 1, "--prompt-tokens", 3, "--generate-tokens", 2,
                         "--json=~/bench.json")
        self.assertTrue((self.folder / "bench.json").is_file())
        self.assertIn(f"{self.folder}/model", self.run_at_home("inspect", "~/model").stdout)
        self.run_at_home("doctor", "--disk=~/disk")
        self.assertTrue((self.folder / "disk").is_dir())
        self.run_at_home("clean", "--disk=~/disk")
        self.run_at_home("synthesize", "tiny-llama", "f32", "~/made.gguf")
        self.assertTrue((self.folder / "made.gguf").is_file())
        for arguments in (["perplexity", "--model=~/model", "--text=~/in.jsonl"], ["tokenize", "--model=~/model", "x"]):
            self.assertIn("no tokenizer", self.run_at_home(*arguments, code=harness.USAGE).stderr)

    def test_what_is_no_home(self):
        for path in ("~other/model", "/~/model"):
            self.assertIn(f"{path}: ", self.run_at_home("inspect", path, code=BAD_MODEL).stderr)

    @unittest.skipUnless(shutil.which("setpriv") and os.geteuid() == 0, "no setpriv, or not root")
    def test_none_at_all(self):
        """A user without a home: what fits in memory runs, and what needs the directory says so."""
        self.folder.chmod(0o755)

        def homeless(*arguments, code=0):
            done = subprocess.run(["setpriv", "--reuid=54321", "--clear-groups", "env", "-u", "HOME", "-u",
                                   "XDG_CACHE_HOME", harness.program(), *map(str, arguments)],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            if "ermission denied" in done.stderr:
                self.skipTest(done.stderr)
            self.assertEqual(code, done.returncode, done.stderr)
            return done

        log = homeless("plan", "--model", "synthetic:tiny-opt").stderr
        self.assertIn("no home directory", log)
        self.assertIn("--disk", log)
        homeless("doctor")
        self.assertIn("--disk", homeless("clean", code=harness.USAGE).stderr)
        self.assertIn("write the path in full", homeless("inspect", "~/model", code=harness.USAGE).stderr)


class Launchers(CommandTest):
    """Which launchers make ranks of a run is known by what they put into the environment."""

    def plan(self, code, says="", **environment):
        done = subprocess.run([harness.program(), "plan", "--model", TINY], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, env={**os.environ, **environment})
        self.assertEqual(code, done.returncode, done.stderr)
        self.assertIn(says, done.stdout if code == 0 else done.stderr)
        return done.stderr

    def test_another_mpi(self):
        """Its ranks would each take the whole batch."""
        for rank in "01":
            log = self.plan(69, "start headrace with Open MPI's mpirun", PMI_RANK=rank, PMI_SIZE="2", PMI_FD="9")
            self.assertIn("MPICH", log)

    def test_ranks_that_mpi_does_not_find(self):
        for size in ({"OMPI_COMM_WORLD_SIZE": "2"}, {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "2"}):
            self.plan(69, "the launcher started 2 ranks, but MPI (Open MPI", **size)

    def test_srun_without_pmix(self):
        self.plan(harness.USAGE, "srun --mpi=pmix", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0")

    def test_one_task_and_shells_of_jobs_run_alone(self):
        for environment in ({"PMI_RANK": "0", "PMI_SIZE": "1"},
                            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"},
                            {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
                            {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}):
            self.plan(0, "stage 1 of 1", **environment)


    def test_ranks_with_different_commands(self):
        common = ["--model", TINY]
        for first, second in ((["generate", "--prompt", "x"], ["plan"]), (["plan"], ["bench"]), (["bench"], ["plan"])):
            with self.subTest(first=first, second=second):
                parts = [[harness.program(), *map(str, [*part, *common])] for part in (first, second)]
                done = subprocess.run(
                    ["mpirun", "--bind-to", "none", "--oversubscribe", "-np", "1", *parts[0], ":", "-np", "1", *parts[1]],
                    env={**os.environ, "TMPDIR": str(self.folder), "OMPI_ALLOW_RUN_AS_ROOT": "1",
                         "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
                self.assertEqual(harness.USAGE, done.returncode, done.stderr)
                self.assertIn(f"rank 1 was started as headrace {second[0]}, rank 0 as headrace {first[0]}",
                              done.stderr)

    def test_peer_timeout(self):
        for value in ("1e12", "0", "-1", "nan", "inf"):
            for command in (["plan", "--model", TINY], ["doctor"]):
                self.refused(harness.USAGE, *command, f"--peer-timeout={value}", says=["--peer-timeout", "seconds"])
        self.run_program("plan", "--model", TINY, "--peer-timeout", "1e8", ranks=2)

    @staticmethod
    def await_handler(process, number):
        """Until it does not leave the signal to the system."""
        status = pathlib.Path(f"/proc/{process}/status")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE)
            if caught and int(caught[1], 16) >> (number - 1) & 1:
                return
            time.sleep(0.005)

    def test_a_mistake_is_a_mistake_where_srun_ends_the_other_ranks(self):
        """They wait for rank 0 to say it; then srun sends them a SIGTERM, and takes the largest code."""
        wrong = self.config("bogus = 1\n")
        for arguments in (["--bogus"], ["--config", wrong]):
            job = subprocess.Popen([harness.program(), "plan", "--model", TINY, *arguments],
                                   env={**os.environ, "SLURM_PROCID": "1", "PMIX_RANK": "1"},
                                   stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            self.addCleanup(job.kill)
            self.await_handler(job.pid, signal.SIGTERM)
            job.terminate()
            self.assertEqual(b"", job.communicate(timeout=2)[1], "rank 0 says it")
            self.assertEqual(harness.USAGE, job.returncode)


class Config(CommandTest):
    def run_config(self, text, *arguments, **options):
        return self.run_program("generate", "--config", self.config(text), "--input", self.batch(),
                                "--output", "-", *arguments, **options)

    def tokens(self, job):
        return len(json.loads(job.stdout())["response"]["body"]["choices"][0].get("token_ids", []))

    def test_values(self):
        text = f'# tiny\nmodel = "{TINY}"  # a string\ntoken-ids = true\nthreads = 1\nsplit = [1, 2]\n'
        self.assertEqual(3, self.tokens(self.run_config(text, ranks=2)))
        self.assertEqual(3, self.tokens(self.run_config(text.replace("[1, 2]", '"1,2"'), ranks=2)))

    def test_host_attention(self):
        for value in ("0.5", '"0.5"', '"on"'):
            self.run_config(f'model = "{TINY}"\nhost-attention = {value}\n')
        self.refused(harness.USAGE, "generate", "--config", self.config('host-attention = "much"\n'),
                     "--model", TINY, "--prompt", "x", says=["host-attention", "much"])

    def test_the_command_line_wins_before_and_after(self):
        text = 'model = "/nowhere"\ntoken-ids = true\nsplit = "9"\n'
        job = self.run_config(text, "--model", TINY, "--split", "3", "--token-ids=false")
        self.assertEqual(0, self.tokens(job))
        job = self.run_program("generate", "--model", TINY, "--split", "3", "--input", self.batch(),
                               "--output", "-", "--config", self.config(text))
        self.assertEqual(3, self.tokens(job))

    def test_mistakes(self):
        broken = "write each name once, as name = value, with text in quotes"
        for text, says in (("bogus = 1\n", ["line 1: bogus is not an option"]),
                           ("\n[node]\nthreads = 1\n", ["line 2: node is a table", "remove"]),
                           ("a.b = 1\n", ["line 1: a is a table"]),
                           ("threads = 1\nkv = \"f16\"\nthreads = 2\n", ["line 3: ", "'threads'", broken]),
                           ("input = \"a\"\ninput = \"b\"\n", ["line 2: ", "'input'", broken]),
                           ("\nprompt = two words\n", ["line 2: ", broken]),
                           ("prompt = \"two\" words\n", ["line 1: ", broken]),
                           ("threads = 1 kv = 2\n", ["line 1: ", broken]),
                           ("prompt = \"open\nthreads = 1\n", ["line 1: ", broken]),
                           ("prompt = \"\\q\"\n", ["line 1: ", "unknown escape sequence", broken]),
                           ("split = [1, 2\n", ["line 1: ", "array", broken]),
                           ("split = [1 2]\n", ["line 1: ", "expected comma", broken]),
                           ("resume\n", ["line 1: ", "expected '='", broken]),
                           ("resume = \n", ["line 1: ", "expected value", broken]),
                           ("prompt = \"\"\n", ["line 1: prompt has no value"]),
                           ("split = []\n", ["line 1: split has no value"]),
                           ("split = [{a = 1}]\n", ["line 1: split is a table"]),
                           ("prompt = 2026-11-28\n", ["line 1: prompt is a date", "in quotes"]),
                           ("resume = 3\n", ["line 1: resume is a switch"])):
            with self.subTest(text=text):
                self.refused(harness.USAGE, "generate", "--model", TINY, "--config",
                             self.config(text), says=["options.toml", *says])
        self.refused(harness.USAGE, "generate", "--model", TINY, "--config",
                     self.config("threads = 0\n"), says=["--threads: 0 is not"])
        self.refused(harness.USAGE, "generate", "--config", "/nowhere.toml", says=["/nowhere.toml"])

    def test_text(self):
        """The model's name comes back in the message that it is not there."""
        for value, meant in (('"/no # comment, two words"  # but this', "/no # comment, two words"),
                             ("'/single \\n \"quotes\"'", '/single \\n "quotes"'),
                             (r'"/escaped \"\\ \u00e4\U0001F600"', '/escaped "\\ ä😀'),
                             ("[\n  '/in', # a list\n  'lines' ,\n]", "/in,lines")):
            with self.subTest(value=value):
                self.refused(BAD_MODEL, "generate", "--config",
                             self.config(f"\tmodel={value}\r\n\n# end"), "--prompt", "x", says=[meant])

    def test_shipped_files(self):
        names = [path.name for path in CONFIGS.glob("*.toml")]
        self.assertLessEqual({"laptop.toml", "two-node.toml", "larger-than-memory.toml"}, set(names))
        readme = (CONFIGS / "README.md").read_text()
        for name in names:
            with self.subTest(name=name):
                self.assertIn(f"| `{name}` |", readme)
                output = self.folder / f"{name}.jsonl"
                self.run_program("generate", "--config", CONFIGS / name, "--model", TINY, "--input",
                                 self.batch(), "--output", output, ranks=2)
                self.assertEqual(["line-1"], list(harness.read_results(output)))

    def test_values_that_shipped_files_suggest(self):
        """Lines of shipped files that are comments and become options when the # is taken away."""
        for path in CONFIGS.glob("*.toml"):
            suggested = re.findall(r"^# +([a-z-]+ = .*)$", path.read_text(), re.MULTILINE)
            options = set(re.findall(r"^ +--([a-z-]+)", self.run_text("generate", "--help"), re.MULTILINE))
            with self.subTest(path=path.name):
                self.assertLessEqual({line.split()[0] for line in suggested}, options)
                lines = [line for line in suggested if not line.startswith(("disk", "split"))]
                self.run_config("\n".join([f'model = "{TINY}"', *lines]) + "\n")

    def test_plan_of_a_shipped_file(self):
        text = self.run_text("plan", "--config", CONFIGS / "larger-than-memory.toml", "--model", TINY)
        self.assertIn("up to 64 in flight", text)


class Perplexity(CommandTest):
    TEXT = pathlib.Path(__file__).parents[1] / "perf" / "quality.txt"

    def measure(self, *arguments):
        """(perplexity, predicted tokens)"""
        words = self.run_text("perplexity", *arguments, limit=120).split()
        return float(words[1]), int(words[3])

    def test_equals_transformers(self):
        model = harness.real_model(harness.SMOL)
        value, tokens = self.measure("--model", model, "--text", self.TEXT, "--kv", "f32")
        self.assertEqual(GOLDEN_TOKENS, tokens)
        self.assertLess(abs(value / GOLDEN_PERPLEXITY - 1), 1e-4)

    def test_windows_and_formats(self):
        model, text = harness.real_model(harness.SMOL), self.folder / "text"
        text.write_text(" mill wheel" * 30)
        common = ["--model", model, "--text", text]
        whole, tokens = self.measure(*common)
        self.assertEqual(59, tokens)
        self.assertEqual((whole, 59), self.measure(*common, "--threads", 1, "--target", "avx2"))
        short, tokens = self.measure(*common, "--window", 10)
        self.assertEqual(54, tokens)  # 6 windows
        self.assertGreater(short, 2 * whole)
        coarse, _ = self.measure(*common, "--kv", "q4")
        self.assertNotEqual(coarse, whole)

    def test_mistakes(self):
        text = self.folder / "text"
        text.write_text("Hello there.")
        refused = lambda code, *arguments, says: self.refused(code, "perplexity", *arguments, says=says)
        refused(IO, "--model", TINY, "--text", "/nowhere/text", says=["/nowhere/text"])
        refused(harness.USAGE, "--model", TINY, "--text", text, says=["no tokenizer"])
        refused(harness.USAGE, "--model", TINY, says=["--text"])
        refused(harness.USAGE, "--model", TINY, "--text", text, "--kv", "q5", says=["--kv", "q8"])
        model = harness.real_model(harness.SMOL)
        refused(harness.USAGE, "--model", model, "--text", text, "--window", 1, says=["2 to 8192"])
        refused(harness.USAGE, "--model", model, "--text", text, "--weights", "q4", says=["native"])
        text.write_text("")
        refused(harness.USAGE, "--model", model, "--text", text, says=["too short"])


class Tokenize(CommandTest):
    def test_round_trip(self):
        model = harness.real_model(harness.SMOL)
        text = "Hello  wörld, 12 345 — 漢字\n"
        ids = json.loads(self.run_text("tokenize", "--model", model, text))
        self.assertGreater(len(ids), 8)
        listed = ",".join(map(str, ids))
        self.assertEqual(text + "\n", self.run_text("tokenize", "--model", model, "--decode", listed))

    def test_standard_input_and_pieces(self):
        model = harness.real_model(harness.SMOL)
        text = self.folder / "text"
        text.write_text("Hi there")
        with open(text) as stdin:
            job = self.start("tokenize", "--model", model, "--pieces", stdin=stdin)
            self.assertEqual(harness.DONE, job.wait(), job.log())
        lines = job.stdout().splitlines()
        self.assertEqual(["Hi", " there"], [json.loads(line.split("\t")[1]) for line in lines])

    def test_chat(self):
        model = harness.real_model(harness.SMOL)
        ids = json.loads(self.run_text("tokenize", "--model", model, "--chat", "Hi"))
        listed = ",".join(map(str, ids))
        text = self.run_text("tokenize", "--model", model, "--decode", listed)
        self.assertTrue(text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\n"), text)

    def test_no_such_token(self):
        model = harness.real_model(harness.SMOL)
        self.refused(harness.USAGE, "tokenize", "--model", model, "--decode", "49152",
                     says=["--decode 49152", "0 to 49151"])

    def test_no_tokenizer(self):
        for model in (TINY, "synthetic:opt-125m"):
            self.refused(harness.USAGE, "tokenize", "--model", model, "x", says=["no tokenizer"])


if __name__ == "__main__":
    harness.main()
