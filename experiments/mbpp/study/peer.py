"""Another program on the same model file, behind an OpenAI-compatible endpoint of its own."""
import dataclasses
import http.client
import json
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys
import time

from study import data, generate, journal, manifest

START_S = 300  # for loading the model
CONTEXT = 2048  # tokens of one sequence: the longest prompt and 768 more
# llama_cpp.server penalises repetitions by 1.1 where a request does not say otherwise.
PARAMETERS = {"repeat_penalty": 1}
ENDPOINT = pathlib.Path(__file__).resolve().parent.parent / "endpoint.py"


@dataclasses.dataclass(frozen=True)
class Peer:
    """command: words with {model}, {port}, {concurrency}, {context} (of one sequence) and
    {contexts} (of all) in them."""
    label: str
    command: str

    def command_without_folders(self):
        return " ".join(word.rpartition("/")[2] for word in shlex.split(self.command))


def parse(text):
    label, equals, command = text.partition("=")
    if not equals or not label or not command:
        raise ValueError(f"--peer {text}: must be LABEL=COMMAND")
    return Peer(label, command)


def journal_name(label, concurrency):
    return f"{label}-c{concurrency}"


def facts_file(setting, peer, concurrency):
    """How the peer was run; it is there when the journal beside it is complete."""
    return setting.work / "endpoint" / f"{journal_name(peer.label, concurrency)}.json"


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def answers(port):
    """Whether the server has loaded its model: llama-server says 503 until then."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def start(peer, model, concurrency, log):
    """(process, port), once it answers."""
    port = free_port()
    words = [word.format(model=model, port=port, concurrency=concurrency, context=CONTEXT,
                         contexts=CONTEXT * concurrency) for word in shlex.split(peer.command)]
    process = subprocess.Popen(generate.dies_with_us(words), stdin=subprocess.DEVNULL, stdout=log,
                               stderr=log, start_new_session=True)
    end = time.monotonic() + START_S
    while not answers(port):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            process.wait()
            raise generate.RunError(f"{peer.label} does not answer on port {port}; see {log.name}")
        time.sleep(0.5)
    return process, port


def forget_elsewhere(setting, run, peers):
    """A round of one batch size is of one machine: what another one has done of a round that is
    not finished begins anew."""
    facts = [facts_file(setting, peer, run.batch) for peer in peers]
    if all(path.exists() for path in facts):
        return
    here = manifest.machine()
    for path in facts:
        if path.exists() and json.loads(path.read_text())["machine"] != here:
            path.unlink()
            path.with_suffix(".jsonl").unlink()
    if any(piece["machine"] != here for piece in generate.pieces_of(setting, run)):
        shutil.rmtree(setting.work / "runs" / run.name)


def run(setting, peer, concurrency, tasks, data_file, system, say):
    """Brings the journal of this concurrency to its end."""
    facts = facts_file(setting, peer, concurrency)
    facts.parent.mkdir(parents=True, exist_ok=True)
    if facts.exists():
        return
    output, processors = facts.with_suffix(".jsonl"), generate.Processors()
    say(f"{peer.label} at concurrency {concurrency}")
    with open(facts.with_name(f"{peer.label}.log"), "ab") as log:
        server, port = start(peer, setting.model, concurrency, log)
        try:
            code = setting.child.run(
                [sys.executable, ENDPOINT, "--base-url", f"http://127.0.0.1:{port}/v1", "--no-key",
                 "--model", setting.model.name, "--label", peer.label, "--api", "completions",
                 "--system", system, "--parameters", json.dumps(PARAMETERS),
                 "--concurrency", concurrency, "--tasks", tasks, "--data", data_file,
                 "--output", output], setting.lock, stdout=sys.stderr)
        finally:
            server.terminate()
            server.wait(60)
    records = data.read_json_lines(output)[1:] if output.exists() else []
    answered = journal.latest(records).values()
    if code not in (0, 1) or all(record["text"] is None for record in answered):
        raise generate.RunError(f"{peer.label} gave no answers (endpoint.py: exit code {code}); "
                                f"see {output} and {log.name}")
    generate.write_whole(facts, json.dumps({
        "machine": manifest.machine(), "command": peer.command_without_folders(),
        "parameters": PARAMETERS,
        "others_cpu_share": processors.share_of_others()}, indent=1) + "\n")
