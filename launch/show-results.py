#!/usr/bin/env python3
"""Shows a results file of headrace as a table: launch/show-results.py RESULTS [--input BATCH]

With the batch file, requests come in its order and with the end of their prompt.
"""
import argparse
import json
import os
import shutil
import sys
import unicodedata

ID_WIDTH, TOKENS_WIDTH, END_WIDTH = 16, 11, 7


def columns_of(character):
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def printable(text):
    """What would move the cursor is shown as a mark; only line breaks stay."""
    text = text.replace("\t", "    ").strip("\n")
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else "�" for c in text)


def wrap(text, width):
    """Lines of at most `width` columns, broken at spaces where there are any."""
    lines = []
    for line in text.split("\n"):
        used, space, start = 0, None, 0
        for index, character in enumerate(line):
            used += columns_of(character)
            if used > width:
                cut = space if space is not None and space > start else index
                lines.append(line[start:cut].rstrip(" "))
                start = cut + 1 if line[cut] == " " else cut
                used = sum(map(columns_of, line[start:index + 1]))
                space = None
            if character == " ":
                space = index
        lines.append(line[start:])
    return lines


def read_json_lines(path):
    """(number, value or None, whether the line has its end) of each line that is not blank."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError):
                    value = None
                yield number, value, text.endswith("\n")


def prompt_of(request):
    """What there is to show, of a line that may be wrong in any way."""
    body = request.get("body", request)
    if not isinstance(body, dict):
        return ""
    prompt = body.get("prompt")
    messages = body.get("messages")
    if isinstance(messages, list):
        prompt = messages[-1].get("content") if messages and isinstance(messages[-1], dict) else ""
    if isinstance(prompt, list):
        prompt = "token ids " + " ".join(map(str, prompt))
    return prompt if isinstance(prompt, str) else ""


def prompts_of(path):
    """custom_id: prompt, in the order of the file."""
    prompts = {}
    for number, request, _ in read_json_lines(path):
        usable = isinstance(request, dict)
        name = request.get("custom_id") if usable else None
        if not isinstance(name, str) or name in prompts:
            name = f"line-{number}"
        prompts[name] = prompt_of(request) if usable else ""
    return prompts


def records_of(path):
    """Result by custom_id. A torn last line, which --resume drops, is none."""
    records = {}
    for number, record, is_whole in read_json_lines(path):
        try:
            rows_of(record)
            records[record["custom_id"]] = record
        except (TypeError, KeyError, AttributeError):
            if is_whole:
                raise ValueError(f"{path}: line {number} is not a result of headrace") from None
            print(f"show-results: {path}: line {number} is torn and left out; the run was cut short, "
                  "--resume goes on with it", file=sys.stderr)
    return records


def rows_of(record):
    """(tokens, end, text) for each choice, or one for an error."""
    if record["error"]:
        return [("-", "error", record["error"]["message"])]
    body = record["response"]["body"]
    usage, choices = body["usage"], body["choices"]
    tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']}"
    rows = []
    for choice in choices:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        rows.append(("" if rows else tokens, choice["finish_reason"], text))
    return rows


def show(record, prompt, width):
    text_width = width - ID_WIDTH - TOKENS_WIDTH - END_WIDTH - 3
    lines = []
    if prompt:
        # What the model goes on from is at the end; two lines are enough to know it again.
        prompt = printable(" ".join(prompt.split()))
        room = 2 * text_width - 8
        asked = wrap("> " + (prompt if len(prompt) <= room else "..." + prompt[-room:]), text_width)
        lines = [("", "", line) for line in asked]
    for tokens, end, text in rows_of(record):
        wrapped = wrap(printable(text), text_width)
        lines.append((tokens, end, wrapped[0]))
        lines += [("", "", line) for line in wrapped[1:]]
    names = wrap(printable(record["custom_id"]), ID_WIDTH)
    for index in range(max(len(lines), len(names))):
        tokens, end, text = lines[index] if index < len(lines) else ("", "", "")
        name = names[index] if index < len(names) else ""
        pad = " " * (ID_WIDTH - sum(map(columns_of, name)))
        print(f"{name}{pad} {tokens:>{TOKENS_WIDTH}} {end:<{END_WIDTH}} {text}".rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--input", help="the batch file")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    width = max(60, min(100, shutil.get_terminal_size((100, 24)).columns))
    try:
        prompts = prompts_of(arguments.input) if arguments.input else {}
        records = records_of(arguments.results)
    except (OSError, ValueError) as error:
        print(f"show-results: {error}", file=sys.stderr)
        return 1
    order = [name for name in prompts if name in records]
    order += [name for name in records if name not in prompts]
    print(f"{'REQUEST':<{ID_WIDTH}} {'TOKENS':>{TOKENS_WIDTH}} {'END':<{END_WIDTH}} TEXT")
    for name in order:
        print("-" * width)
        show(records[name], prompts.get(name, ""), width)
    print("-" * width)
    failed = sum(1 for record in records.values() if record["error"])
    print(f"{len(records)} requests, {failed} failed; tokens are prompt + generated")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
