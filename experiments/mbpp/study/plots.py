"""The report's plots, as SVG text."""
import io
import re

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "headrace", "font.size": 9, "axes.grid": True,
                            "grid.alpha": 0.3, "axes.spines.top": False,
                            "axes.spines.right": False})
from matplotlib import pyplot  # after the choice of what draws

from study import report

SIZE = (6.4, 3.4)  # inches


def svg_of(figure):
    """Without dates, and the same for the same figures."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None},
                   bbox_inches="tight")
    pyplot.close(figure)
    return re.sub(r"<\?xml.*?\?>\s*<!DOCTYPE.*?>\s*", "", text.getvalue(), flags=re.DOTALL)


def batch_axis(axes, batches):
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(batches), [str(batch) for batch in sorted(batches)])
    axes.set_xlabel("batch size")


def greedy_by_stages(files):
    """{ranks: [(batch, name)]} of the runs over all tasks."""
    found = {}
    for name, run in report.main_runs(files):
        found.setdefault(run["ranks"], []).append((run["batch"], name))
    return found


def speed(files, results):
    figure, axes = pyplot.subplots(figsize=SIZE)
    batches = set()
    for ranks, runs in greedy_by_stages(files).items():
        xs = [batch for batch, _ in runs]
        batches.update(xs)
        axes.plot(xs, [results["speed"][name]["generated_per_s"] for _, name in runs], "o-",
                  color=f"C{ranks - 1}", label=f"MBPP+ run, {ranks} stage(s)")
        fixed = results["fixed_length"].get(f"stages{ranks}", {})
        if fixed:
            xs = sorted(map(int, fixed))
            rates = [fixed[str(batch)]["generated_tokens_per_s"] for batch in xs]
            spread = [[rate["median"] - rate["min"] for rate in rates],
                      [rate["max"] - rate["median"] for rate in rates]]
            axes.errorbar(xs, [rate["median"] for rate in rates], yerr=spread, fmt="s--", capsize=3,
                          color=f"C{ranks - 1}", alpha=0.6, label=f"fixed length, {ranks} stage(s)")
            batches.update(xs)
    batch_axis(axes, batches)
    axes.set_ylabel("generated tokens/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return svg_of(figure)


def peers(files, results):
    """headrace and the servers that ran in turn with it, on the same tasks."""
    points = {}
    for peer in results["peers"].values():
        if "headrace_run" in peer:
            batch = peer["concurrency"]
            points.setdefault(peer["label"], {})[batch] = peer["generated_per_s"]
            mine = results["speed"][peer["headrace_run"]]["generated_per_s"]
            points.setdefault("headrace", {})[batch] = mine
    if not points:
        return None
    figure, axes = pyplot.subplots(figsize=SIZE)
    for index, (label, rates) in enumerate(sorted(points.items())):
        axes.plot(*zip(*sorted(rates.items())), "o-", color=f"C{index}", label=label)
    batch_axis(axes, {batch for rates in points.values() for batch in rates})
    axes.set_xlabel("batch size of headrace, concurrency of the others")
    axes.set_ylabel("generated tokens/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return svg_of(figure)


def accuracy(files, results):
    figure, axes = pyplot.subplots(figsize=SIZE)
    batches = set()
    for ranks, runs in greedy_by_stages(files).items():
        for tests, mark, aside in (("base", "o", 0.06), ("plus", "s", -0.06)):
            shares = [results["accuracy"][name][tests] for _, name in runs]
            # Side by side, or equal points would hide each other.
            xs = [batch * 2 ** (aside + (ranks - 1.5) * 0.3) for batch, _ in runs]
            spread = [[100 * (s["value"] - s["low"]) for s in shares],
                      [100 * (s["high"] - s["value"]) for s in shares]]
            axes.errorbar(xs, [100 * s["value"] for s in shares], yerr=spread, fmt=mark, capsize=3,
                          color=f"C{ranks - 1}", label=f"{tests} tests, {ranks} stage(s)")
        batches.update(batch for batch, _ in runs)
    batch_axis(axes, batches)
    axes.set_ylabel("pass@1, %, with 95 % interval")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, ncols=2)
    return svg_of(figure)


def latency(files, results):
    figure, axes = pyplot.subplots(figsize=SIZE)
    batches = set()
    for ranks, runs in greedy_by_stages(files).items():
        runs = [(batch, name) for batch, name in runs if results["speed"][name]["latency_s"]]
        for key, style in (("p50", "o-"), ("p90", "s--"), ("p99", "^:")):
            if runs:
                axes.plot([batch for batch, _ in runs],
                          [results["speed"][name]["latency_s"][key] for _, name in runs], style,
                          color=f"C{ranks - 1}", label=f"{key}, {ranks} stage(s)")
        batches.update(batch for batch, _ in runs)
    if not batches:
        pyplot.close(figure)
        return None
    batch_axis(axes, batches)
    axes.set_ylabel("seconds in flight")
    axes.set_yscale("log")
    axes.legend(fontsize=8, ncols=2)
    return svg_of(figure)


PLOTS = {"speed": speed, "accuracy": accuracy, "latency": latency, "peers": peers}


def draw(files, results):
    """{name: SVG}"""
    drawn = {name: plot(files, results) for name, plot in PLOTS.items()}
    return {name: text for name, text in drawn.items() if text}
