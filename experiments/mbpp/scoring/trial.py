"""Whether there is a sandbox here, it holds, and EvalPlus judges in it as it should.

    python3 -m scoring.trial [--allow-unsafe-scoring]

Exit codes: 0 yes, or asked for without; 69 no.
"""
import argparse
import subprocess
import sys

from scoring import sandbox

EVALPLUS = "0.3.1"
UNAVAILABLE = 69
UNSAFE = "none (--allow-unsafe-scoring)"


class Unavailable(Exception):
    """Something that scoring needs is not there, or does not work here."""


class NoSandbox(Unavailable):
    """This is the sandbox."""


def open_sandbox(limits, allow_unsafe):
    """(sandbox, its name, versions) after a trial; never a bare one that was not asked for."""
    try:
        name = _bubblewrap_version()
        confined = sandbox.Sandbox(limits)
        return confined, name, _probe(confined)
    except NoSandbox as error:
        if not allow_unsafe:
            raise NoSandbox(
                f"no sandbox: {error}\nGenerated programs are not run without one. In a machine "
                "that holds nothing else, --allow-unsafe-scoring runs them as you.") from None
        bare = sandbox.Sandbox(limits, confined=False)
        return bare, UNSAFE, _probe(bare)


def _bubblewrap_version():
    try:
        asked = subprocess.run(["bwrap", "--version"], capture_output=True, text=True)
    except OSError:
        raise NoSandbox("bubblewrap (bwrap) is not installed; on Debian: "
                        "apt-get install bubblewrap") from None
    if asked.returncode != 0:
        raise NoSandbox(f"bwrap --version ended with {asked.returncode}: {asked.stderr.strip()}")
    return asked.stdout.strip()


def _probe(box):
    outcome = box.run({"step": "probe"})
    versions = outcome.last("evalplus")
    if versions is None:
        raise _explained(outcome)
    if versions["evalplus"] != EVALPLUS:
        raise Unavailable(f"EvalPlus {EVALPLUS} is needed, but {versions['evalplus']} is there; "
                          "install requirements-scoring.txt")
    return versions


def _explained(outcome):
    """The error for a trial that came to no good end."""
    wrong = outcome.last("wrong")
    if wrong:
        return NoSandbox(wrong["wrong"])
    if "ModuleNotFoundError" in outcome.log:
        return Unavailable(
            f"{outcome.last_line()}\nInstall the packages for {sys.executable}, in a virtual "
            "environment: pip install --require-hashes --no-deps -r requirements-scoring.txt")
    text = f"the trial run ended with {outcome.ended}: {outcome.last_line() or 'it said nothing'}"
    if "libseccomp" in outcome.log:
        text += "\nInstall libseccomp; on Debian: apt-get install libseccomp2"
    elif "bwrap:" in outcome.log:
        text += ("\nbubblewrap needs user namespaces, which this system or container does not give "
                 "(sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; "
                 "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined)")
    return NoSandbox(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allow-unsafe-scoring", action="store_true")
    try:
        open_sandbox({}, parser.parse_args().allow_unsafe_scoring)
    except Unavailable as error:
        print(f"score: {error}", file=sys.stderr)
        return UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
