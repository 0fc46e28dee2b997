"""Batches and starts that are out of the ordinary: they end, say why, and leave no request out."""
import json
import pathlib
import shutil
import struct
import subprocess

import harness

MODEL = "synthetic:tiny-opt"
LLAMA = harness.TINY / "llama-gqa"
BAD_BF16 = [struct.pack("<H", bits) for bits in (0x7FC0, 0xFF80)]  # NaN, minus infinity


def ids(count, start=3):
    return [start + i % 300 for i in range(count)]


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def safetensors_offset(path, tensor):
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    return 8 + length + json.loads(data[8:8 + length])[tensor]["data_offsets"][0]


def gguf_offset(path, tensor, last):
    """Where a tensor begins in a file whose table ends with the tensor `last`."""
    data = path.read_bytes()

    def entry(name):  # (offset within the data, end of the entry)
        at = data.index(name.encode()) + len(name)
        dimensions = struct.unpack_from("<I", data, at)[0]
        at += 4 + 8 * dimensions + 4
        return struct.unpack_from("<Q", data, at)[0], at + 8

    return (entry(last)[1] + 31) // 32 * 32 + entry(tensor)[0]


class OddBatches(harness.ProgramTest):
    def both(self, requests, *arguments, ranks, expect=harness.DONE):
        """On one process and on several; the results of the first."""
        alone = self.generate(MODEL, requests, "--threads", 1, *arguments, expect=expect)
        several = self.generate(MODEL, requests, "--threads", 1, *arguments, ranks=ranks, expect=expect)
        self.assert_same_results(alone, several, f"{ranks} ranks")
        self.assertEqual(len(alone), len(requests))
        return alone

    def test_a_huge_prompt_among_small_ones(self):
        requests = [{"custom_id": f"r{i}", "prompt": ids(2, i + 3), "max_tokens": 20} for i in range(12)]
        requests.insert(6, {"custom_id": "huge", "prompt": ids(500), "max_tokens": 12})
        for arguments in (["--prefill-chunk", "all"], ["--prefill-chunk", "16", "--max-batch", 3]):
            results = self.both(requests, *arguments, ranks=3)
            self.assertEqual(len(harness.token_ids(results["huge"])), 12)

    def test_more_ranks_than_requests(self):
        self.both([{"prompt": [5, 6, 7], "max_tokens": 9}], ranks=4)

    def test_one_sequence_in_flight(self):
        requests = [{"prompt": ids(i + 1), "max_tokens": 5, "n": 2, "temperature": 1.0} for i in range(6)]
        self.both(requests, "--max-batch", 1, ranks=3)

    def test_memory_for_little(self):
        # Room for few sequences: the rest waits. A request that can never fit has an error record.
        requests = [{"custom_id": f"r{i}", "prompt": ids(30), "max_tokens": 30} for i in range(10)]
        requests.append({"custom_id": "big", "prompt": ids(400), "max_tokens": 100})
        size = self.least_memory()
        results = self.generate(MODEL, requests, "--threads", 1, "--host-memory", size + 200_000,
                                "--disk-budget", 0, expect=harness.SOME_FAILED)
        self.assertEqual(results.pop("big")["response"]["status_code"], 400)
        plenty = self.generate(MODEL, requests[:-1], "--threads", 1)
        self.assert_same_results(plenty, results)

    def least_memory(self):
        """What the refusal asks for, in bytes."""
        log = self.run_program("generate", "--model", MODEL, "--input", "-", "--output", "-",
                               "--host-memory", "1KiB", "--disk-budget", 0, expect=73).log()
        self.assertIn("--host-memory", log)
        table = next(line for line in log.splitlines() if line.strip().startswith("needed"))
        value, unit = table.split()[1:3]
        return int(float(value) * {"KiB": 1 << 10, "MiB": 1 << 20}[unit])

    def test_only_bad_lines(self):
        bad = ['{"prompt": 7}', "not json", '{"prompt": [1], "n": 0}', '{"prompt": [100000]}', '"x"', '{"prompt": []}',
               '{"prompt": [1], "stop": ""}', '{"prompt": [1], "temprature": 1}', json.dumps({"prompt": ids(5000)})]
        for ranks in (None, 3):
            batch, output = self.folder / "bad.jsonl", self.folder / f"bad-out{ranks}.jsonl"
            batch.write_bytes("\n".join(bad).encode() + b'\n{"prompt": "\xff"}\n')
            self.run_program("generate", "--model", MODEL, "--input", batch, "--output", output,
                             ranks=ranks, expect=harness.SOME_FAILED)
            results = harness.read_results(output)
            self.assertEqual(set(results), {f"line-{i}" for i in range(1, len(bad) + 2)})
            for record in results.values():
                self.assertEqual(record["response"]["status_code"], 400)
                self.assertTrue(record["error"]["message"])

    def test_a_hundred_thousand_requests_take_no_more_memory(self):
        """But for their ids."""
        peaks = []
        for count in (2_000, 100_000):
            requests = [{"prompt": [3 + i % 300, 7], "max_tokens": 1} for i in range(count)]
            report = self.folder / "report.json"
            results = self.generate(MODEL, requests, "--threads", 1, "--max-batch", 64, "--report", report, limit=300)
            self.assertEqual(len(results), count)
            peaks.append(json.loads(report.read_text())["stages"][0]["peak_memory_bytes"])
        print(f"peak memory: {peaks[0] >> 10} KiB, {peaks[1] >> 10} KiB", flush=True)
        self.assertLess(peaks[1] - peaks[0], 8 << 20)

    def test_empty_input(self):
        for text in ("", "\n \n\n"):
            for ranks in (None, 1, 3):
                batch, output = self.folder / "empty.jsonl", self.folder / "empty-out.jsonl"
                batch.write_text(text)
                self.run_program("generate", "--model", MODEL, "--input", batch, "--output", output, ranks=ranks)
                self.assertEqual(output.read_bytes(), b"")
                output.unlink()

    def test_refused_starts(self):
        """Each ends at once on all ranks, with its own exit code and a message that names the cure."""
        batch, output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        harness.write_requests(batch, [{"prompt": [5, 6], "max_tokens": 3}])
        common = ["generate", "--model", MODEL, "--input", batch, "--output", output]
        self.run_program(*common)
        new = [*common[3:6], self.folder / "new.jsonl"]
        cases = [
            (common, harness.USAGE, "--resume"),  # the output is there already
            ([*common, "--resume", "--temperature", "0.5"], harness.USAGE, "temperature"),
            ([*common, "--resume", "--max-tokens", "7"], harness.USAGE, "max_tokens"),
            ([*common, "--resume", "--kv", "f32"], harness.USAGE, "kv=f32"),
            ([*common, "--resume", "--kv", "q4"], harness.USAGE, "kv=q4"),
            ([*common, "--resume", "--weights", "q8"], harness.USAGE, "weights=q8"),
            ([*common, "--resume", "--math", "int8"], harness.USAGE, "math=int8"),
            ([*common[:2], "synthetic:tiny-opt:q8", *new, "--weights", "q4"], harness.USAGE, "Q8_0"),
            ([*common[:2], "synthetic:tiny-opt:q8", *common[3:], "--resume"], harness.USAGE, "fingerprint"),
            ([*common, "--resume", "--split", "1,1"], harness.USAGE, "--split"),
            ([*common[:2], "synthetic:none", *new], 65, "tiny-opt"),
            ([*common[:2], self.folder / "none.gguf", *new], 65, "none.gguf"),
            ([*common[:4], self.folder / "none.jsonl", *common[5:6], self.folder / "new.jsonl"],
             harness.USAGE, "none.jsonl"),
        ]
        before = output.read_bytes()
        for ranks in (None, 3):
            for arguments, code, word in cases:
                job = self.run_program(*arguments, ranks=ranks, expect=code, limit=30)
                self.assertIn(word, job.log())
        self.assertEqual(output.read_bytes(), before)
        self.run_program(*common, "--resume")
        self.assertEqual(output.read_bytes(), before)

    def test_ranks_of_different_cpus(self):
        requests = [{"prompt": ids(i + 1), "max_tokens": 8, "logprobs": 2} for i in range(6)]
        expected = self.generate(MODEL, requests, "--threads", 1)
        own = [["--target", target] for target in ("scalar", harness.targets()[0], "avx2")]
        self.assert_same_results(expected, self.generate(MODEL, requests, "--threads", 1, ranks=own))

    def test_ranks_with_different_models(self):
        batch = self.folder / "in.jsonl"
        harness.write_requests(batch, [{"prompt": [5, 6], "max_tokens": 3}])
        own = [["--model", harness.TINY / f"llama-rope3.{kind}.gguf"] for kind in ("Q8_0", "Q4_0")]
        log = self.run_program("generate", "--input", batch, "--output", self.folder / "out.jsonl", ranks=own,
                               expect=harness.USAGE, limit=30).log()
        self.assertRegex(log, r"model fingerprint is \w+ on rank 0 \(host .+\) and \w+ on rank 1 \(host .+\)")

    def test_ranks_with_different_programs(self):
        """Rank 1 runs a copy that says it is of another version."""
        version = self.run_program("--version").stdout().split()[1].encode() + b" ("
        other = self.folder / "headrace"
        other.write_bytes(pathlib.Path(harness.program()).read_bytes().replace(version, version.replace(b".", b"!")))
        other.chmod(0o755)
        batch = self.folder / "in.jsonl"
        harness.write_requests(batch, [{"prompt": [5, 6], "max_tokens": 3}])
        log = self.run_program("generate", "--model", MODEL, "--input", batch, "--output", self.folder / "out.jsonl",
                               ranks=[[], []], prefix=[["env"], ["sh", "-c", f'shift; exec {other} "$@"', "sh"]],
                               expect=harness.USAGE, limit=30).log()
        self.assertRegex(log, r"headrace version is \d+\.\d+\.\d+ .* on rank 0 \(host .+\) and \d+!\d+!\d+ .* on rank 1")

    def test_rows_of_the_embedding_that_are_no_numbers(self):
        """Each request that meets them has an error record; the others have their results."""
        requests = [{"custom_id": f"r{i}", "prompt": [20 + i, 7], "max_tokens": 3} for i in range(6)]
        expected = self.generate(LLAMA, requests, "--threads", 1)
        del expected["r3"]
        model = self.folder / "model"
        shutil.copytree(LLAMA, model)
        row = safetensors_offset(LLAMA / "model.safetensors", "model.embed_tokens.weight") + 23 * 64 * 2
        for bad in BAD_BF16:
            overwrite(model / "model.safetensors", row, bad)
            results = self.generate(model, requests, "--threads", 1, ranks=2, expect=harness.SOME_FAILED)
            record = results.pop("r3")
            self.assertEqual("model_error", record["error"]["code"])
            for word in ("not finite", "check the model's weights"):
                self.assertIn(word, record["error"]["message"])
            self.assert_same_results(expected, results)

    def test_weights_that_are_no_numbers(self):
        """What every request meets is refused at the start: an infinite K would pass as a large one."""
        layer = "model.layers.1"
        opt = "model.decoder.layers.1"
        for name, tensor, row, column in (
                ("llama-gqa", f"{layer}.self_attn.k_proj.weight", 15, 63),
                ("llama-gqa", f"{layer}.self_attn.v_proj.weight", 0, 0),
                ("llama-gqa", f"{layer}.mlp.down_proj.weight", 63, 127),
                ("llama-gqa", f"{layer}.input_layernorm.weight", 0, 5),
                ("llama-gqa", "model.norm.weight", 0, 63),
                ("llama-gqa", "lm_head.weight", 299, 1),
                ("opt-pre", f"{opt}.fc1.weight", 100, 1),
                ("opt-pre", f"{opt}.fc2.bias", 0, 1),
                ("opt-pre", "model.decoder.embed_tokens.weight", 299, 1)):  # the head, too
            model = self.folder / f"{name}.{tensor}"
            shutil.copytree(harness.TINY / name, model)
            file = model / "model.safetensors"
            columns = 128 if "down" in tensor else 64
            at = safetensors_offset(file, tensor) + (row * columns + column) * 2
            for bad, ranks in zip(BAD_BF16, (None, 2)):
                overwrite(file, at, bad)
                self.refused(model, file, f'"{tensor}"', f"(row {row}, column {column})", ranks=ranks)

    def test_scales_that_are_no_numbers(self):
        for kind, minimum in (("Q8_0", 0), ("Q4_0", 0), ("Q4_1", 2), ("Q5_0", 0), ("Q5_1", 2)):
            model = self.folder / f"model.{kind}.gguf"
            shutil.copy(harness.TINY / f"llama-rope3.{kind}.gguf", model)
            at = gguf_offset(model, "blk.1.ffn_down.weight", last="output_norm.weight")
            for bad in (0x7E00, 0x7C00):  # NaN and infinity in F16
                overwrite(model, at + minimum, struct.pack("<H", bad))
                self.refused(model, model, '"blk.1.ffn_down.weight"', "(row 0, column 0)")

    def refused(self, model, *words, ranks=None):
        batch = self.folder / "in.jsonl"
        harness.write_requests(batch, [{"prompt": [5, 6], "max_tokens": 2}] * 3)
        job = self.run_program("generate", "--model", model, "--input", batch, "--output", "-", "--threads", 1,
                               ranks=ranks, expect=65, limit=30)
        for word in (*words, "not finite", "fetch it again"):
            self.assertIn(str(word), job.log())
        self.assertEqual("", job.stdout())

    def test_two_runs_on_one_output(self):
        batch, output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        requests = [{"prompt": ids(40), "max_tokens": 20, "temperature": 1.0} for _ in range(6)]
        harness.write_requests(batch, requests)
        common = ["generate", "--model", MODEL, "--output", output, "--threads", 1, "--resume"]
        for ranks in (None, 2):
            # It holds the file until its input ends.
            first = self.start(*common, "--input", "-", ranks=2, stdin=subprocess.PIPE)
            first.await_true(output.exists, "the first run holds the output", 30)
            second = self.run_program(*common, "--input", batch, ranks=ranks, expect=harness.USAGE, limit=30)
            self.assertIn("another run is writing", second.log())
            first.process.stdin.write(batch.read_bytes())
            first.process.stdin.close()
            self.assertEqual(first.wait(), harness.DONE, first.log())
            self.assertEqual(len(harness.read_results(output)), len(requests))
            output.unlink()

    def test_prompt_over_ranks(self):
        """--prompt prints its text; here the model has no tokenizer, and says so."""
        for ranks in (None, 2):
            job = self.run_program("generate", "--model", MODEL, "--prompt", "x", ranks=ranks,
                                   expect=harness.SOME_FAILED)
            self.assertIn("token ids", job.log())

    def test_results_on_standard_output(self):
        batch = self.folder / "in.jsonl"
        harness.write_requests(batch, [{"prompt": [5, 6], "max_tokens": 3}] * 3)
        for ranks in (None, 2):
            out = self.run_program("generate", "--model", MODEL, "--input", batch, "--output", "-",
                                   ranks=ranks).stdout()
            self.assertEqual(sorted(json.loads(line)["custom_id"] for line in out.splitlines()),
                             ["line-1", "line-2", "line-3"])

    def test_many_short_runs(self):
        """Starts and ends are where rare hangs live."""
        batch = self.folder / "in.jsonl"
        harness.write_requests(batch, [{"prompt": ids(i + 1), "max_tokens": 4} for i in range(5)])
        expected = None
        for i in range(24):
            output = self.folder / "short.jsonl"
            self.run_program("generate", "--model", MODEL, "--input", batch, "--output", output, "--token-ids",
                             "--threads", 1, ranks=2 + i % 3, limit=30)
            results = harness.read_results(output)
            expected = expected or results
            self.assert_same_results(expected, results)
            output.unlink()


if __name__ == "__main__":
    harness.main()
