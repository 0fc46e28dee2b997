"""The tasks of MBPP+ and the files that the study starts from.

    python3 -m study.data DIRECTORY [--offline DIR]

Puts MbppPlus.jsonl (MBPP+ v0.2.0) into DIRECTORY, from its publisher or from DIR, and checks its
sha256. A file that is there and whole is not fetched again.
"""
import argparse
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import sys
import urllib.request

FILE = "MbppPlus.jsonl"
VERSION = "MBPP+ v0.2.0"
TASKS = 378
SHA256 = "b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad"
# The release that EvalPlus 0.3.1 itself downloads (evalplus/data/utils.py).
ADDRESS = "https://github.com/evalplus/mbppplus_release/releases/download/v0.2.0/MbppPlus.jsonl.gz"
OFFLINE_NAMES = (FILE, "MbppPlus-v0.2.0.jsonl", FILE + ".gz")
MOST_BYTES = 64 << 20  # unpacked; the file has 2.6 MB
TIMEOUT = 30  # seconds without a byte


class DataError(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Task:
    task_id: str
    prompt: str


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_model(path):
    """Of a file; of a directory, over the sorted lines "sha256  name" of its files."""
    path = pathlib.Path(path)
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    lines = [f"{sha256_of(file)}  {file.name}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_json_lines(path):
    """The objects of a file of JSON lines; a line that is none is an error that names it."""
    records = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                record = json.loads(text)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is not JSON ({error})") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}: line {number} is not a JSON object")
            records.append(record)
    return records


def read_tasks(path, count=None):
    """The first `count` tasks, in the order of the file, which is that of EvalPlus."""
    found = sha256_of(path)
    if found != SHA256:
        raise DataError(f"{path} is not {VERSION}: its sha256 is {found}, not {SHA256}; "
                        "delete it and fetch it again")
    tasks = [Task(record["task_id"], record["prompt"]) for record in read_json_lines(path)]
    if count is not None and not 1 <= count <= len(tasks):
        raise DataError(f"{count} tasks: {VERSION} has 1 to {len(tasks)}")
    return tasks[:count]


def unpacked(file, name):
    """The text of an open file, which is compressed where its name says so."""
    stream = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(f"{name} has more than {MOST_BYTES >> 20} MiB")
    return content


def content_from(folder):
    for name in OFFLINE_NAMES:
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                return unpacked(file, name)
    raise DataError(f"{folder} holds none of {', '.join(OFFLINE_NAMES)}; download {ADDRESS} into "
                    "it")


def content_from_publisher():
    try:
        with urllib.request.urlopen(ADDRESS, timeout=TIMEOUT) as source:
            return unpacked(source, ADDRESS)
    except (OSError, EOFError) as error:
        raise DataError(f"{ADDRESS} cannot be downloaded ({error}); download it elsewhere and name "
                        "its folder with --offline") from None


def fetch(directory, offline=None):
    """The path of the data file in `directory`, whole and with the right hash."""
    target = directory / FILE
    if target.is_file() and sha256_of(target) == SHA256:
        return target
    content = content_from(offline) if offline else content_from_publisher()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(f"{offline or ADDRESS}: the file's sha256 is {found}, not {SHA256} "
                        f"({VERSION})")
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / (FILE + ".part")
    part.write_bytes(content)
    os.replace(part, target)
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--offline", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    try:
        print(fetch(arguments.directory, arguments.offline))
    except (DataError, OSError) as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
