"""From the results files of all runs to generations.jsonl.

A line is one distinct output of one request, with the names of all runs that gave it. So a request
whose tokens are the same in every run has one line.

    kind       greedy, sampled, qwen-prompt, or endpoint (outputs of another program)
    task_id    of MBPP+
    draw       which sample of the task, 0 for greedy
    sample     number of the line among those of its task in this file (what scoring counts by)
    runs       names of the runs
    text       after the prefill, cut at the stop string, tabs as four spaces
    token_ids  generated tokens, the end-of-sequence token or those of the stop string included;
               null where the program does not tell them
"""
import json

from study import data, journal


def without_tabs(text):
    """As EvalPlus 0.3.1 does with what a model it runs has written (evalplus/provider/vllm.py)."""
    return text.replace("\t", "    ")


def outputs_of_run(path, run):
    """(key of the request, output) of each line of a results file of headrace."""
    for record in data.read_json_lines(path):
        if record["error"] is not None:
            raise data.DataError(f"{path}: request {record['custom_id']} failed: "
                                 f"{record['error']['message']}")
        task_id, _, draw = record["custom_id"].rpartition("#")
        body = record["response"]["body"]
        choice = body["choices"][0]
        yield (run.kind, task_id, int(draw)), {
            "text": without_tabs(choice["message"]["content"]), "token_ids": choice["token_ids"],
            "finish": choice["finish_reason"], "prompt_tokens": body["usage"]["prompt_tokens"]}


def outputs_of_endpoint(records):
    """The same of the journal of endpoint.py; requests that failed have no output."""
    for record in journal.latest(records[1:]).values():
        if record["text"] is not None:
            usage = record["usage"]
            yield ("endpoint", record["task_id"], record["draw"]), {
                "text": without_tabs(record["text"]), "token_ids": None, "finish": record["finish"],
                "prompt_tokens": usage["prompt_tokens"]}


def distinct(named_outputs):
    """named_outputs: (name of a run, its outputs). {key: [[output, names of runs]]}"""
    found = {}
    for name, outputs in named_outputs:
        for key, output in outputs:
            entries = found.setdefault(key, [])
            same = next((entry for entry in entries if entry[0]["text"] == output["text"]
                         and entry[0]["token_ids"] == output["token_ids"]), None)
            if same:
                same[1].append(name)
            else:
                entries.append([output, [name]])
    return found


def lines_of(found, order):
    """order: task ids as the data has them."""
    place = {task_id: index for index, task_id in enumerate(order)}
    for (_, task_id, _), outputs in found.items():
        if task_id not in place:
            raise data.DataError(f"{', '.join(outputs[0][1])} answered {task_id}, which is no task "
                                 "of this study; use the same --tasks")
    kinds = ["greedy", "sampled", "qwen-prompt", "endpoint"]
    counts, lines = {}, []
    for key in sorted(found, key=lambda key: (kinds.index(key[0]), place[key[1]], key[2])):
        kind, task_id, draw = key
        for output, names in found[key]:
            sample = counts[task_id] = counts.get(task_id, -1) + 1
            lines.append({"task_id": task_id, "sample": sample, "kind": kind, "draw": draw,
                          "runs": names, **output})
    return lines


def write(path, lines):
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
                    encoding="utf-8")
    part.replace(path)
