"""The files that scoring reads, checked line by line."""
import hashlib
import json


TASK = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input",
        "atol", "contract")


class BadInput(Exception):
    """Names the file, the line and what is wrong."""


def read_data(path):
    """The ids of the tasks of an MBPP+ file, and the file's sha256."""
    records, digest = _records(path)
    for place, record in records:
        missing = [name for name in TASK if name not in record]
        if missing or not isinstance(record["task_id"], str):
            raise BadInput(f"{place}: not a task of MBPP+ (no {', '.join(missing) or 'task_id'})")
    if not records:
        raise BadInput(f"{path}: no tasks in it")
    return {record["task_id"] for _, record in records}, digest


def read_generations(path, tasks):
    """(task_id, sample, text) of every line. A sample of a task may occur once."""
    found = {}
    for place, record in _records(path)[0]:
        task_id, sample, text = (record.get(name) for name in ("task_id", "sample", "text"))
        if not isinstance(task_id, str) or not isinstance(text, str) or type(sample) is not int:
            raise BadInput(f"{place}: needs task_id and text (strings) and sample (a whole number)")
        if task_id not in tasks:
            raise BadInput(f"{place}: the data file has no task {task_id}")
        if (task_id, sample) in found:
            raise BadInput(f"{place}: sample {sample} of {task_id} is there already")
        found[task_id, sample] = text
    if not found:
        raise BadInput(f"{path}: no generations in it")
    return [(task_id, sample, text) for (task_id, sample), text in found.items()]


def _records(path):
    """([(place, object)], sha256) of a JSON Lines file; blank lines do not count."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    records = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{place}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise BadInput(f"{place}: not a JSON object")
        records.append((place, record))
    return records, hashlib.sha256(data).hexdigest()
