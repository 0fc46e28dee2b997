"""Where results go: a disk that is full in the middle, one that may only be read, a symbolic link."""
import random
import subprocess

import harness

MODEL = "synthetic:tiny-opt"


def requests():
    rng = random.Random(8)
    return [{"custom_id": f"r{i}", "prompt": [rng.randrange(3, 320) for _ in range(rng.randint(1, 20))],
             "max_tokens": rng.randint(2, 30), "logprobs": 5, "seed": i} for i in range(60)]


class Output(harness.ProgramTest):
    undisturbed = None

    def setUp(self):
        super().setUp()
        self.input = self.folder / "in.jsonl"
        harness.write_requests(self.input, requests())

    def expected(self):
        if Output.undisturbed is None:
            Output.undisturbed = self.generate(MODEL, requests(), "--threads", 1)
        return Output.undisturbed

    def run_to(self, output, *arguments, **how):
        return self.run_program("generate", "--model", MODEL, "--input", self.input, "--output", output,
                                "--token-ids", "--threads", 1, "--max-batch", 4, *arguments, **how)

    def check_all(self, output):
        self.assert_same_results(self.expected(), harness.read_results(output))

    def mount_again(self, disk, options):
        subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)

    def test_full_in_the_middle(self):
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                disk = self.folder / f"disk{ranks}"
                self.small_disk(disk, "64k")
                output = disk / "out.jsonl"
                log = self.run_to(output, ranks=ranks, expect=harness.IO).log()
                for text in (str(output), "No space left on device", "Free space", "--resume"):
                    self.assertIn(text, log)
                written = harness.read_results(output)  # whole lines
                self.assertTrue(0 < len(written) < len(requests()))
                self.mount_again(disk, "size=8m")
                self.run_to(output, "--resume", ranks=ranks)
                self.check_all(output)

    def test_read_only(self):
        disk = self.folder / "disk"
        self.small_disk(disk, "8m")
        output = disk / "out.jsonl"
        self.run_to(output)
        whole = output.read_bytes()
        half = whole[:whole.index(b"\n", len(whole) // 2) + 1]
        output.write_bytes(half)
        self.mount_again(disk, "ro")
        for path, arguments in ((output, ["--resume"]), (disk / "other.jsonl", [])):
            log = self.run_to(path, *arguments, expect=harness.IO).log()
            for text in (str(path), "Read-only file system", "this user may write"):
                self.assertIn(text, log)
        self.assertEqual(half, output.read_bytes())
        self.mount_again(disk, "rw")
        self.run_to(output, "--resume")
        self.check_all(output)

    def test_symbolic_link(self):
        """Results are where the link points, also when it points to nothing yet; the link stays."""
        target, link = self.folder / "elsewhere.jsonl", self.folder / "out.jsonl"
        link.symlink_to(target)
        self.run_to(link)
        self.assertTrue(link.is_symlink())
        self.check_all(target)
        self.run_to(link, expect=harness.USAGE)
        whole = target.read_bytes()
        target.write_bytes(whole[:len(whole) // 2])
        self.run_to(link, "--resume")
        self.assertTrue(link.is_symlink())
        self.check_all(target)
        nowhere = self.folder / "broken.jsonl"
        nowhere.symlink_to(self.folder / "no" / "out.jsonl")
        self.assertIn("mkdir", self.run_to(nowhere, expect=harness.USAGE).log())


if __name__ == "__main__":
    harness.main()
