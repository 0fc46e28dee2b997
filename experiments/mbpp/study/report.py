"""The report as Markdown. Every figure in it is the value of a claim."""
import json

TITLES = {"speed": "Generated tokens per second over the batch size",
          "accuracy": "pass@1 over the batch size",
          "latency": "Seconds that a request is in flight",
          "peers": "Generated tokens per second of the first tasks, beside other programs"}


class Figures:
    """Cells of tables, from claims by their id; a dash where there is none."""

    def __init__(self, claims):
        self._claims = claims

    def number(self, identity, digits=1):
        claim = self._claims.get(identity)
        return "–" if claim is None else f"{claim.value:.{digits}f}"

    def spread(self, identity):
        claim = self._claims.get(identity)
        return "–" if claim is None else f"{claim.value:.1f} ({claim.low:.1f}–{claim.high:.1f})"

    def percent(self, identity, interval=True, digits=1):
        claim = self._claims.get(identity)
        if claim is None:
            return "–"
        text = f"{100 * claim.value:.{digits}f}"
        return f"{text} ({100 * claim.low:.1f}–{100 * claim.high:.1f})" if interval else text

    def count(self, identity):
        claim = self._claims.get(identity)
        return "–" if claim is None else str(claim.value)

    def text(self, identity):
        claim = self._claims.get(identity)
        return None if claim is None else claim.text


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main_runs(files):
    runs = [(name, run["run"]) for name, run in files.runs.items()
            if run["run"]["kind"] == "greedy" and not name.startswith("peer-")]
    return sorted(runs, key=lambda item: (item[1]["ranks"], item[1]["batch"]))


def latency_cell(figures, name):
    cells = [figures.number(f"latency.{name}.{key}") for key in ("p50", "p90", "p99")]
    return " / ".join(cells)


def measured(files):
    """(what was measured, on which machine), the runs of the table first."""
    names = [name for name, _ in main_runs(files)]
    for name in [*names, *(name for name in files.runs if name not in names)]:
        for piece in files.runs[name]["pieces"]:
            yield name, piece["machine"]
    for name, report in files.bench.items():
        yield f"fixed length, {name}", report["machine"]
    for name, facts in files.peer_facts.items():
        yield name, facts["machine"]


def letters(files):
    """{boot: letter} of machines, or of starts of one, where there are several."""
    boots = list(dict.fromkeys(machine["boot"] for _, machine in measured(files)))
    return {boot: chr(ord("A") + index) for index, boot in enumerate(boots) if len(boots) > 1}


def label(files, name):
    """headrace, and on which machines of several."""
    known = letters(files)
    found = {known[piece["machine"]["boot"]]: None for piece in files.runs[name]["pieces"] if known}
    return ", ".join(["headrace", *found])


def main_table(files, figures, published):
    heads = ["", "batch", "stages × threads", "tok/s, whole run", "tok/CPU s",
             "tok/s, fixed length", "prefill tok/s", "decode tok/s", "latency s, p50 / p90 / p99",
             "prompt tokens shared, %", "pass@1 base, %", "pass@1 plus, %", "token ids that differ"]
    runs = main_runs(files)
    first, rows = runs[0][0], []
    for name, run in runs:
        fixed = f"fixed.stages{run['ranks']}.batch{run['batch']}"
        rows.append([
            label(files, name), str(run["batch"]), f"{run['ranks']} × {run['threads']}",
            figures.number(f"speed.{name}"), figures.number(f"cpu.{name}"),
            figures.spread(f"{fixed}.generated"), figures.number(f"{fixed}.prefill"),
            figures.number(f"{fixed}.decode"), latency_cell(figures, name),
            figures.percent(f"shared.{name}", interval=False),
            figures.percent(f"pass1.{name}.base"), figures.percent(f"pass1.{name}.plus"),
            "reference" if name == first else figures.count(f"differ.{first}.{name}.token_ids")])
    for index, row in published:
        rows.append([row["name"] + ("" if row["run"] else ", *not run*"), *["–"] * 9,
                     figures.percent(f"published.{index}.base", interval=False),
                     figures.percent(f"published.{index}.plus", interval=False), "–"])
    pieces = [figures.text(f"speed.{name}") for name, _ in runs
              if len(files.runs[name]["pieces"]) > 1]
    return "\n".join([table(heads, rows)] + [f"\n{text}" for text in pieces])


def short_table(files, figures):
    """For a README: a row for each batch size."""
    runs = main_runs(files)
    by_batch = {}
    for name, run in runs:
        by_batch.setdefault(run["batch"], {})[run["ranks"]] = name
    heads = ["batch", "tok/s, 1 stage × 2 threads", "tok/s, 2 stages × 1 thread",
             "tok/s, fixed length, 1 stage", "latency s, p50 / p90 / p99", "pass@1 base, %",
             "pass@1 plus, %", "requests with other token ids"]
    first, rows = runs[0][0], []
    for batch, names in sorted(by_batch.items()):
        one, two = names.get(1), names.get(2)
        rows.append([str(batch), figures.number(f"speed.{one}"), figures.number(f"speed.{two}"),
                     figures.spread(f"fixed.stages1.batch{batch}.generated"),
                     latency_cell(figures, one), figures.percent(f"pass1.{one}.base"),
                     figures.percent(f"pass1.{one}.plus"), "reference" if one == first else
                     figures.count(f"differ.{first}.{one}.token_ids")])
    return table(heads, rows)


def of_this_study(published, manifest):
    """(index, row) of published figures of the same model, and of those that stand in for a run."""
    name = manifest["model"]["name"].lower()
    return [(index, row) for index, row in enumerate(published)
            if row["model"] is None or row["model"] in name]


def question(manifest):
    name = manifest["model"]["name"]
    other = "" if "qwen2.5" in name.lower() else f" {name} is another model, beside the question."
    return f"""# MBPP scaling study: {manifest['model']['name']}

**How do tokens per second and pass@k on MBPP change with the batch size (1, 4, 16), for Qwen2.5 and
for Gemini 1.5 Pro?** This is a run of `experiments/mbpp/reproduce.sh` on
{manifest['started'][:10]}: model {manifest['model']['name']}, {manifest['tasks']} tasks. Gemini 1.5
Pro was switched off on 24 September 2025, so its row quotes published figures and is marked *not
run*.{other}"""


def answer(files, results, figures):
    lines = ["## Answer", ""]
    runs = main_runs(files)
    for ranks in sorted({run["ranks"] for _, run in runs}):
        rates = [(run["batch"], f"speed.{name}") for name, run in runs if run["ranks"] == ranks]
        words = ", ".join(f"{figures.number(identity)} at batch {batch}"
                          for batch, identity in rates)
        lines.append(f"- Generated tokens/s over the whole run, {ranks} stage(s): {words}.")
    shares = ", ".join(figures.percent(f"pass1.{runs[0][0]}.{tests}") + f" % {tests}"
                       for tests in ("base", "plus"))
    lines.append(f"- pass@1 (greedy, 95 % interval in brackets): {shares}.")
    lines += [f"- {line}" for line in sampled_answer(files, results, figures)]
    if figures.text("differ.most"):
        equal = figures.count("differ.most") == "0"
        lines.append(f"- {figures.text('differ.most')}"
                     + " Of these requests, batch size and stage count changed the speed only."
                     * equal)
    return "\n".join(lines)


def sampled_answer(files, results, figures):
    """pass@k over the batch size: of the tasks that all sampled runs have."""
    found = results["pass_at_k_of_common_tasks"]
    runs = [(files.runs[name]["run"], name) for name in found]
    runs = sorted((run["batch"], name) for run, name in runs if run["ranks"] == 1)
    if not runs:
        return
    first = found[runs[0][1]]
    for k in first["k"]:
        cells = ", ".join(f"{figures.percent(f'common.pass{k}.{name}.base', interval=False)} / "
                          f"{figures.percent(f'common.pass{k}.{name}.plus', interval=False)} at "
                          f"batch {batch}" for batch, name in runs)
        yield (f"pass@{k} of {first['samples']} samples of each of {first['tasks']} tasks, base / "
               f"plus, %: {cells}.")


def method(files, scoring):
    manifest = files.manifest
    cpu, data, fixed = manifest["machine"]["cpu"], manifest["data"], manifest["fixed_length"]
    sampled = manifest["sampling"]["sampled"]
    return f"""## Method

- Model: {manifest['model']['name']}, sha256 `{manifest['model']['sha256']}`.
- Tasks: the first {manifest['tasks']} of {data['name']}, sha256 `{data['sha256']}`.
- Program: {manifest['versions']['headrace']} on {cpu['usable_cores']} cores of
  {cpu['model']} ({', '.join(cpu['vector_flags'])}).
- Requests: EvalPlus's chat prompt with its prefill and stop strings, greedy, at most
  {manifest['sampling']['greedy']['max_tokens']} new tokens, one ordinary batch file for
  `headrace generate --device cpu --order input --threads T --max-batch N`. Sampled runs: temperature
  {sampled['temperature']}, top_p {sampled['top_p']}, a seed from task and sample.
- tok/s, whole run: generated tokens over the time from the first step to the last, ramp-up and
  stragglers included, loading not. tok/CPU s: the same over the processor time of all ranks, which
  other programs on the machine disturb less. Prefill and decode share steps in such a run, so they
  are timed apart in the fixed-length run: `headrace bench`,
  {fixed['prompt_tokens']} + {fixed['generate_tokens']} tokens, {fixed['repeat']} repetition(s),
  median (minimum–maximum).
- Latency: from when a request gets a slot to when its result stands in the file (watched, 0.02 s).
- Scoring: EvalPlus {scoring.get('evalplus')}, sanitiser {scoring.get('sanitiser')}, sandbox:
  {scoring.get('sandbox')}. plus: base and plus tests.
- Intervals: pass@1 Wilson score over tasks, pass@k percentile bootstrap over tasks (10,000
  resamples), both 95 %. They say how much another set of tasks would change the figure, not how
  much another run would: that is in the last column."""


def samples_table(runs, figures, prefix=""):
    rows = []
    for name, found in runs.items():
        for k in found["k"]:
            rows.append([name, f"{found['tasks']} × {found['samples']}", k,
                         figures.percent(f"{prefix}pass{k}.{name}.base"),
                         figures.percent(f"{prefix}pass{k}.{name}.plus"),
                         figures.number(f"speed.{name}")])
    return table(["run", "tasks × samples", "k", "base, %", "plus, %", "tok/s, whole run"], rows)


def samples(results, figures):
    parts = []
    if results["pass_at_k"]:
        parts += ["## pass@k", samples_table(results["pass_at_k"], figures)]
    wider = {name: found for name, found in results["pass_at_k_of_common_tasks"].items()
             if results["pass_at_k"][name]["tasks"] > found["tasks"]}
    if wider:
        parts += ["Of the tasks that all of these runs have:",
                  samples_table(wider, figures, "common.")]
    return "\n\n".join(parts) or None


def same_tokens(results, figures):
    lines = ["## Do the outputs depend on how it ran?", ""]
    if figures.text("differ.most"):
        lines += [figures.text("differ.most"), ""]
    wrong = [entry for entry in results["differences"] if entry["token_ids"]]
    for entry in wrong:
        lines.append(f"- {figures.text('differ.{a}.{b}.token_ids'.format(**entry))}")
    rows = [[entry["a"], entry["b"], str(entry["requests"]), str(entry["texts"])]
            for entry in results["peer_differences"]]
    if rows:
        lines += ["Of the other program:", "",
                  table(["run", "and", "requests", "texts that differ"], rows)]
    return "\n".join(lines)


def peer_table(peers, figures):
    """A row for each server, and one for headrace's run of the same tasks where there is one."""
    rows, shown = [], {None}
    for name, peer in peers.items():
        for label, source in (("headrace", peer.get("headrace_run")), (peer["label"], name)):
            if source not in shown:
                shown.add(source)
                rows.append([label, str(peer["concurrency"]), figures.number(f"speed.{source}"),
                             latency_cell(figures, source), figures.percent(f"pass1.{source}.base"),
                             figures.percent(f"pass1.{source}.plus")])
    return table(["", "batch, concurrency", "tok/s, whole run", "latency s, p50 / p90 / p99",
                  "pass@1 base, %", "pass@1 plus, %"], rows)


def said_to_peers(files):
    """What their requests had beyond headrace's; results of before it was kept have nothing of it."""
    said = {json.dumps(facts.get("parameters")) for facts in files.peer_facts.values()}
    return [f"Their requests say `{text}` as well." for text in sorted(said - {"null"})]


def peer_lines(peers, figures):
    texts = [figures.text(f"{key}.{name}") for name in peers
             for key in ("speed", "ratio", "against", "prompts", "failed", "others")]
    return "\n".join(f"- {text}" for text in texts if text)


def peers(files, results, figures):
    in_order = sorted(results["peers"].items(), key=lambda item: item[1]["concurrency"])
    beside = {name: peer for name, peer in in_order if "headrace_run" in peer}
    hosted = {name: peer for name, peer in in_order if "headrace_run" not in peer}
    stands_in = ("Concurrency of the client stands in for the batch size, which an endpoint does "
                 "not have.")
    parts = []
    if beside:
        abouts = {entry["about"] for entry in files.manifest["peers"].values()
                  if entry["about"]}
        parts.append("## Beside another program\n\nThe same file, prompts and stop strings on the "
                     "same machine; headrace and the other program ran in turn, once each. "
                     f"{stands_in} headrace's time is from its first step to its last; a "
                     "server's is its client's, with HTTP and tokenising in it. headrace computes "
                     "in float32. Programs may count the last token of an answer or not. "
                     + " ".join([*sorted(abouts), *said_to_peers(files)]) + "\n\n"
                     + peer_table(beside, figures) + "\n\n" + peer_lines(beside, figures))
    if hosted:
        parts.append("## Other endpoints\n\nThe same tasks, but another model, machine or prompt, "
                     f"or server, or not all of them answered. {stands_in}\n\n"
                     + peer_table(hosted, figures) + "\n\n" + peer_lines(hosted, figures))
    return "\n\n".join(parts) or None


def beside_published(files, results, figures, published):
    lines = ["## Beside published figures", ""]
    for _, row in published:
        mark = "" if row["run"] else "**not run**; "
        lines.append(f"- {row['name']}: {row['base']} / {row['plus']} (base / plus). "
                     f"{mark}{row['note']}. "
                     f"Source: {row['source']}.")
    if any(row["model"] for _, row in published):
        lines += ["", *explanations(files, results, figures)]
    return "\n".join(lines)


def explanations(files, results, figures):
    """Why our figures are not those published for the same model."""
    lines = ["What of the difference can be shown with this model file:", ""]
    runs = [name for name, _ in main_runs(files)]
    for name in results["accuracy_without_sanitiser"]:
        for tests in ("base", "plus"):
            lines.append(f"- Sanitiser: {figures.text(f'pass1-as-is.{name}.{tests}')} With it: "
                         f"{figures.percent(f'pass1.{name}.{tests}')} %.")
    for entry in results["prompt_difference"]:
        lines.append(f"- Prompt: {figures.text('pass1.{b}.base'.format(**entry))} "
                     f"{figures.text('pass1.{b}.plus'.format(**entry))}")
        for tests in ("base", "plus"):
            for which in ("a", "b"):
                lines.append(f"- Prompt: {figures.text(f'prompt.{tests}.only-{entry[which]}')}")
    lines.append(f"- Limit: {figures.text(f'cut.{runs[0]}')}")
    own_names = {report["name"] for report in files.bench.values() if report.get("name")}
    lines += [f"- Weights: the file says of itself that it is \"{name}\"." for name in own_names]
    lines.append("- Quantisation is not isolated here: the published figures are of bf16 weights, "
                 "and only the quantised file was run. What prompt and sanitiser leave unexplained "
                 "is quantisation, the other differences of the harnesses, and chance together.")
    return lines


def not_shown(files, figures):
    names = [name for name, _ in main_runs(files)]
    busy = ", ".join(f"{name} {figures.percent(f'others.{name}', interval=False, digits=0)} %"
                     for name in names)
    return f"""## What is not shown

- One model file, one run of each kind: tokens/s of two runs of one command vary, and other programs
  took a share of the processor meanwhile ({busy}). Compare rates of one machine only.
{machines(files)}{missing_runs(files)}- Both stages ran on one machine; no network was between them.
- No GPU was used, and nothing here says how a GPU's speed depends on the batch size.
- Gemini 1.5 Pro was not run and cannot be: no tokens/s of it, at no concurrency.
- A verdict is EvalPlus's: passing its tests is not being right.
- MBPP is public; models may have been trained on it."""


def machines(files):
    """Where a study went on elsewhere."""
    names, kinds, known = {}, {}, letters(files)
    for name, machine in measured(files):
        names.setdefault(machine["boot"], {})[name] = None  # each once
        kinds[machine["boot"]] = (f"{machine['usable_cores']} cores of {machine['cpu']} "
                                  f"({', '.join(machine['vector_flags'])})")
    if len(names) < 2:
        return "- One machine.\n"
    parts = "; ".join(f"{known[boot]}, {kinds[boot]}: {', '.join(found)}"
                      for boot, found in names.items())
    return (f"- {len(names)} machines, or one that was started {len(names)} times, between which "
            f"rates compare badly: {parts}.\n")


def missing_runs(files):
    names = files.manifest["missing_runs"]
    return f"- Runs of the plan that are not done: {', '.join(names)}.\n" if names else ""


def again():
    return """## Do it again

`experiments/mbpp/reproduce.sh` makes all of this; `--check` this folder compares the token ids of
another run with `generations.jsonl`, and `--verify-claims` computes every figure here again from
the measured files (`claims.json` names the file and the command of each)."""


def markdown(files, results, claims, scoring, published, plots):
    """plots: names of the plots that lie beside the report as NAME.svg."""
    figures, published = Figures(claims), of_this_study(published, files.manifest)
    pictures = [f"![{TITLES[name]}]({name}.svg)" for name in plots]
    parts = [question(files.manifest), answer(files, results, figures), method(files, scoring),
             "## Table", main_table(files, figures, published), *pictures,
             samples(results, figures), same_tokens(results, figures),
             peers(files, results, figures), beside_published(files, results, figures, published),
             not_shown(files, figures), again()]
    return "\n\n".join(part for part in parts if part) + "\n"
