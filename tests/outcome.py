#!/usr/bin/env python3
"""Lists what a CTest run skipped, whole tests or parts, by reason; last, the end of what each failed
test printed.

  tests/outcome.py REPORT [--fail-on TEXT]...

REPORT is what ctest --output-junit wrote. With --fail-on, a reason that holds TEXT makes the exit
code 1.
"""
import argparse
import re
import sys
import xml.etree.ElementTree

# What GoogleTest, the Python tests and unittest itself print.
GTEST = re.compile(r"^.*: Skipped\n(.*)$", re.MULTILINE)
PYTHON = re.compile(r"^skipped: \S+: (.*)$", re.MULTILINE)
# Control characters that XML does not allow, and which a test may well print.
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
LAST_LINES = 25  # of a failed test


def outcome_of(report):
    """How many tests there are; (test, reason) for all that was skipped; (test, output) of the failed."""
    with open(report, encoding="utf-8", errors="replace") as file:
        suite = xml.etree.ElementTree.fromstring(NOT_XML.sub("?", file.read()))
    found = []
    cases = suite.findall("testcase")
    for case in cases:
        output = case.findtext("system-out") or ""
        reasons = GTEST.findall(output) + PYTHON.findall(output)
        if case.find("skipped") is not None and not reasons:
            reasons = [case.find("skipped").get("message") or "no reason given"]
        found += [(case.get("name"), reason.strip()) for reason in reasons]
    failed = [(case.get("name"), case.findtext("system-out") or "")
              for case in cases if case.find("failure") is not None]
    return len(cases), found, failed


def by_reason(found):
    """(reason, names), each reason once."""
    names = {}
    for name, reason in found:
        names.setdefault(reason, []).append(name)
    return [(reason, ", ".join(dict.fromkeys(of))) for reason, of in names.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report")
    parser.add_argument("--fail-on", action="append", default=[], metavar="TEXT")
    arguments = parser.parse_args()
    try:
        count, found, failed = outcome_of(arguments.report)
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        print(f"{arguments.report} cannot be read: {error}")
        return 1
    if count == 0:
        print(f"{arguments.report}: no tests in it")
        return 1
    for reason, names in by_reason(found):
        print(f"  skipped: {reason}: {names}")
    for name, output in failed:
        print(f"  failed: {name}; its last lines:")
        for line in output.rstrip().splitlines()[-LAST_LINES:]:
            print(f"    {line}")
    print(f"{count} tests: {len(failed)} failed, {len(found)} skips")
    wrong = [name for name, reason in found if any(text in reason for text in arguments.fail_on)]
    if wrong:
        print("these must not be skipped here: " + ", ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
