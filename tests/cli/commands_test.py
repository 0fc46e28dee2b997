"""What a user types: help, inspect, tokenize, config files, and what each mistake says."""
import json
import pathlib
import subprocess

import harness

BAD_MODEL, DOES_NOT_FIT, IO = 65, 73, 74
TINY = harness.TINY / "llama-gqa"  # safetensors, 3 layers, no tokenizer
TINY_GGUF = harness.TINY / "llama-rope3.F32.gguf"
REQUEST = {"prompt": [1, 2, 3], "max_tokens": 3}


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
        for word in ("bench", "generate", "inspect", "synthesize", "tokenize", "Usage: headrace "):
            self.assertIn(word, text)

    def test_subcommands_have_examples(self):
        for command in ("bench", "generate", "inspect", "synthesize", "tokenize"):
            self.assertIn("Example", self.run_text(command, "--help"))

    def test_every_option_of_generate_is_in_the_config_readme(self):
        readme = pathlib.Path(__file__).parents[2] / "cluster-configs" / "README.md"
        keys = [line.split("`")[1] for line in readme.read_text().splitlines()
                if line.startswith("| `") and ".toml" not in line]
        options = [word.split()[0].split("=")[0].rstrip(",")[2:]
                   for word in self.run_text("generate", "--help").splitlines()
                   for word in [word.strip()] if word.startswith("--")]
        self.assertEqual(sorted(options), sorted([*keys, "config"]))

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

    def test_no_output(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--input", self.batch(),
                     says=["--output"])

    def test_resume_of_standard_output(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--input", self.batch(),
                     "--output", "-", "--resume", says=["--resume", "--output"])

    def test_size(self):
        self.refused(harness.USAGE, "generate", "--model", TINY, "--prompt", "x", "--host-memory",
                     "1XB", says=["--host-memory 1XB", "900MiB"])

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

    def test_output_of_another_run(self):
        output = self.folder / "out.jsonl"
        self.generate(TINY, [REQUEST], output=output)
        self.refused(harness.USAGE, "generate", "--model", TINY, "--input", self.batch(),
                     "--output", output, says=[str(output), "--resume"])

    def test_does_not_fit(self):
        log = self.refused(DOES_NOT_FIT, "generate", "--model", TINY, "--prompt", "x",
                           "--host-memory", "1MiB",
                           says=["weights", "activations", "KV cache", "budget       1.0 MiB"])
        cure = log.partition("--host-memory ")[2].split()[0]
        self.run_program("generate", "--model", TINY, "--input", self.batch(), "--output", "-",
                         "--host-memory", cure)


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

    def test_unknown_family(self):
        config = json.loads((TINY / "config.json").read_text())
        config.update(model_type="mamba", architectures=["MambaForCausalLM"])
        (self.folder / "config.json").write_text(json.dumps(config))
        self.refused(BAD_MODEL, "inspect", self.folder, says=["config.json", "mamba", "llama"])

    def test_unknown_shape(self):
        self.refused(BAD_MODEL, "inspect", "synthetic:nope", says=["nope", "opt-6.7b"])

    def test_inspect_directory(self):
        text = self.run_text("inspect", TINY)
        for line in ("layers       3", "safetensors", "vocabulary   300", "tokenizer    none", "BF16"):
            self.assertIn(line, text)

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

    def test_the_command_line_wins_before_and_after(self):
        text = 'model = "/nowhere"\ntoken-ids = true\nsplit = "9"\n'
        job = self.run_config(text, "--model", TINY, "--split", "3", "--token-ids=false")
        self.assertEqual(0, self.tokens(job))
        job = self.run_program("generate", "--model", TINY, "--split", "3", "--input", self.batch(),
                               "--output", "-", "--config", self.config(text))
        self.assertEqual(3, self.tokens(job))

    def test_mistakes(self):
        for text, says in (("bogus = 1\n", ["bogus is not an option"]),
                           ("[node]\nthreads = 1\n", ["[node]", "remove"]),
                           ("threads = 1\nkv = \"f16\"\nthreads = 2\n", ["threads stands twice"]),
                           ("resume = 3\n", ["resume is a switch"]),
                           ("threads =\n", ["threads has no value"])):
            with self.subTest(text=text):
                self.refused(harness.USAGE, "generate", "--model", TINY, "--config",
                             self.config(text), says=["options.toml", *says])
        self.refused(harness.USAGE, "generate", "--model", TINY, "--config",
                     self.config("threads = 0\n"), says=["--threads: 0 is not"])
        self.refused(harness.USAGE, "generate", "--config", "/nowhere.toml", says=["/nowhere.toml"])

    def test_shipped_files(self):
        for name in ("laptop.toml", "two-node.toml"):
            with self.subTest(name=name):
                path = pathlib.Path(__file__).parents[2] / "cluster-configs" / name
                output = self.folder / f"{name}.jsonl"
                self.run_program("generate", "--config", path, "--model", TINY, "--input",
                                 self.batch(), "--output", output, ranks=2)
                self.assertEqual(["line-1"], list(harness.read_results(output)))


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
