"""headrace synthesize: files that give the tokens of --model synthetic:..., and what goes wrong."""
import os
import pathlib
import signal
import subprocess
import unittest

import harness

IO = 74
REQUESTS = [{"prompt": [5, 9, 200, 17, 3], "max_tokens": 12, "ignore_eos": True, "logprobs": 2},
            {"prompt": list(range(1, 150)), "max_tokens": 4, "ignore_eos": True}]


class SynthesizeTest(harness.ProgramTest):
    def synthesize(self, *arguments, **options):
        return self.run_program("synthesize", *arguments, **options).log()

    def refused(self, code, *arguments, says):
        before = sorted(os.listdir(self.folder))
        job = self.run_program("synthesize", *arguments, expect=code)
        for text in says:
            self.assertIn(text, job.log())
        new = set(os.listdir(self.folder)) - set(before)
        self.assertEqual([], [name for name in new if not name.startswith(("log.", "out."))])


class SameTokens(SynthesizeTest):
    def test_files_give_the_tokens_of_synthetic_models(self):
        cases = [("tiny-llama", "f32", "a.gguf", []), ("tiny-llama", "q8_0", "b.gguf", []),
                 ("tiny-llama", "q4_0", "c.gguf", ["--seed", 9]), ("tiny-qwen2", "f16", "d.gguf", []),
                 ("tiny-qwen2", "q8", "e.gguf", []), ("tiny-llama", "bf16", "f", []),
                 ("tiny-qwen2", "f32", "g", ["--seed", 9]), ("tiny-opt", "f16", "h", [])]
        seen = set()
        for shape, form, name, options in cases:
            with self.subTest(shape=shape, format=form, out=name):
                out = self.folder / name
                log = self.synthesize(shape, form, out, *options)
                self.assertRegex(log, r"fingerprint [0-9a-f]{16}\n")
                model = f"synthetic:{shape}:{form}" + "".join(f":{n}" for n in options[1:])
                expected = self.generate(model, REQUESTS)
                self.assert_same_results(expected, self.generate(out, REQUESTS))
                seen.add(str(harness.bits(harness.choices(expected["line-1"])[0]["logprobs"])))
        self.assertEqual(len(cases), len(seen))

    def test_threads_and_force_do_not_change_bytes(self):
        out = self.folder / "m.gguf"
        self.synthesize("tiny-llama", "q8", out, "--threads", 1)
        first = out.read_bytes()
        self.synthesize("tiny-llama", "f32", out, "--force")
        self.assertNotEqual(first, out.read_bytes())
        self.synthesize("tiny-llama", "q8", out, "--force", "--threads", 5, "--quiet")
        self.assertEqual(first, out.read_bytes())


class Mistakes(SynthesizeTest):
    def test_what_cannot_be_made(self):
        gguf = self.folder / "m.gguf"
        for arguments, says in (
                (("llama-9", "f32", gguf), ["llama-9", "tiny-llama"]),
                (("tiny-llama", "q3", gguf), ["q3", "bf16"]),
                (("tiny-llama", "q8", self.folder / "m"), ["Q8_0", ".gguf"]),
                (("tiny-opt", "f32", gguf), ["OPT", "directory"]),
                (("tiny-llama", "f32", gguf, "--seed", "-1"), ["--seed"]),
                (("tiny-llama", "f32"), ["out"])):
            with self.subTest(arguments=arguments):
                self.refused(harness.USAGE, *arguments, says=says)

    def test_what_is_there_is_kept(self):
        out = self.folder / "m.gguf"
        out.write_text("mine")
        self.refused(harness.USAGE, "tiny-llama", "f32", out, says=[str(out), "--force"])
        self.assertEqual("mine", out.read_text())
        folder = self.folder / "m"
        folder.mkdir()
        (folder / "notes").write_text("mine")
        self.refused(harness.USAGE, "tiny-llama", "f32", folder, "--force", says=["notes"])

    def test_no_such_directory(self):
        self.refused(IO, "tiny-llama", "f32", self.folder / "no" / "m.gguf", says=["mkdir -p"])

    def test_full_disk(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)],
                                 capture_output=True, text=True)
        if mounted.returncode != 0:
            raise unittest.SkipTest(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
        try:
            for name in ("m.gguf", "m"):
                self.refused(IO, "tiny-llama", "f32", disk / name, says=[str(disk), "free"])
                self.assertEqual([], os.listdir(disk))
            self.synthesize("tiny-llama", "q8", disk / "m.gguf")
        finally:
            subprocess.run(["umount", str(disk)], check=True)


class Stopped(SynthesizeTest):
    LARGE = ("smollm2-360m", "f32")

    def started(self, out):
        job = self.start("synthesize", *self.LARGE, out, "--threads", 1)
        partial = pathlib.Path(f"{out}.partial")
        job.await_true(partial.exists, f"{partial}", 30)
        return job, partial

    def test_an_interrupt_leaves_nothing(self):
        out = self.folder / "m.gguf"
        job, partial = self.started(out)
        job.process.send_signal(signal.SIGINT)
        self.assertEqual(harness.TRY_AGAIN, job.wait())
        self.assertIn("interrupted", job.log())
        self.assertFalse(out.exists() or partial.exists())

    def test_killed_and_started_again(self):
        for out in (self.folder / "m.gguf", self.folder / "m"):
            job, partial = self.started(out)
            job.process.kill()
            job.wait()
            self.assertTrue(partial.exists())
            self.assertFalse(out.exists())
            self.synthesize("tiny-llama", "f32", out)
            self.assertTrue(out.exists())
            self.assertFalse(partial.exists())
            self.run_program("inspect", out)


if __name__ == "__main__":
    harness.main()
