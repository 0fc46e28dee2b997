#!/usr/bin/env python3
"""What a trace (`--trace F`) spends its time on: seconds, spans and bytes of each name on each track.

    tests/perf/trace_table.py trace.json [--rows N]

--rows: only spans of the GPU that have so many rows at least, and what comes between them, so that steps
of prompts and of single tokens can be told apart.
"""
import argparse
import collections
import json


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--rows", type=int, default=0)
    arguments = parser.parse_args()
    events = json.load(open(arguments.trace))["traceEvents"]
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    sums = collections.defaultdict(lambda: [0.0, 0, 0])
    rows = collections.defaultdict(int)
    ends = {}
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
        key = (event["pid"], event["tid"])
        rows[key] = event["args"].get("rows", rows[key])
        if arguments.rows and not (tracks[key] == "GPU" and rows[key] >= arguments.rows):
            continue
        name = (event["pid"], tracks[key], event["name"])
        if tracks[key] == "GPU" and key in ends:
            gap = sums[(event["pid"], tracks[key], "(between)")]
            gap[0] += max(0.0, event["ts"] - ends[key])
            gap[1] += 1
        ends[key] = event["ts"] + event["dur"]
        total = sums[name]
        total[0] += event["dur"]
        total[1] += 1
        total[2] += event["args"].get("bytes", 0)
    print(f"{'rank':>4}  {'track':24}  {'span':24}  {'seconds':>9}  {'spans':>7}  {'us each':>9}  {'GB/s':>6}")
    for (rank, track, name), (us, count, size) in sorted(sums.items(), key=lambda item: (item[0][:2], -item[1][0])):
        rate = f"{size / us / 1e3:6.1f}" if size and us else ""
        print(f"{rank:>4}  {track:24}  {name:24}  {us / 1e6:9.4f}  {count:>7}  {us / count:9.1f}  {rate}")


if __name__ == "__main__":
    main()
