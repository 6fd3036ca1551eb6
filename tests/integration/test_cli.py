"""The commands against a real server, and the servers that they start themselves."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tandem.triton.processes import find_processes
from tandem.triton.server import TritonServer

TANDEM = str(Path(sys.executable).parent / "tandem")
LOCAL = str(Path(__file__).parents[2] / "deployments" / "local.toml")


def environment() -> dict[str, str]:
    """With the handle key of the server."""
    return {**os.environ, "COLUMNS": "200"}


def tandem(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TANDEM, *arguments], input=stdin, capture_output=True, text=True, timeout=240, check=False, env=environment()
    )


def start(*arguments: str) -> subprocess.Popen[str]:
    """A command in a session of its own, as from a terminal."""
    return subprocess.Popen(
        [TANDEM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def run_id_of(process: subprocess.Popen[str]) -> str:
    """The run that a command owns; waits until it has one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for marker in Path(LOCAL).parents[1].glob(f".tandem/run/local-{process.pid}/run_id"):
            if run_id := marker.read_text():
                return run_id
        time.sleep(0.05)
    raise AssertionError("the command started no server")


def test_generate_streams_the_answer_and_sums_up(server: TritonServer) -> None:
    done = tandem("generate", "What is the capital of France? Answer in one sentence.", "--url", server.grpc_url)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    for fact in ("finished: stop", " prompt tokens (", " cached)", "generated", "prefill_0 → decode_0", "KV moved in"):
        assert fact in done.stderr


def test_generate_passes_its_options_on(server: TritonServer) -> None:
    options = ["--raw", "--max-tokens", "6", "--ignore-eos", "--temperature", "0.9", "--top-p", "0.9", "--seed", "7"]
    first = tandem("generate", "-", "--url", server.grpc_url, *options, stdin="Once upon a time")
    again = tandem("generate", "Once upon a time", "--url", server.grpc_url, *options)
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert "finished: length · 4 prompt tokens" in first.stderr
    assert "· 6 generated ·" in first.stderr


def test_generate_stops_before_a_stop_word(server: TritonServer) -> None:
    question = "What is the capital of France? Answer in one sentence."
    done = tandem("generate", question, "--url", server.grpc_url, "--stop-word", " Paris")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The capital of France is\n"


def test_explain_shows_who_would_get_a_prompt(server: TritonServer) -> None:
    done = tandem("explain", "What is the capital of France?", "--url", server.grpc_url)
    assert done.returncode == 0, done.stderr
    assert "Policy kv, 37 prompt tokens: two workers (one worker for both stages was not weighed)" in done.stdout
    assert "prefill: prefill_0 (least cost)" in done.stdout
    assert "decode: decode_0 (least cost)" in done.stdout


def test_refused_request_is_a_sentence(server: TritonServer) -> None:
    done = tandem("generate", "Hello", "--url", server.grpc_url, "--max-tokens", "0")
    assert done.returncode == 2
    assert "max_tokens: 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_shows_every_worker(server: TritonServer) -> None:
    done = tandem("status", "--url", server.grpc_url)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "_0" in line]
    assert ["prefill" in row for row in rows] == [False, True]
    for row in rows:
        assert "torch" in row
        assert "%" in row
    assert "llm" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_asked_to_end(number: signal.Signals) -> None:
    ports = [option for name in ("http", "grpc", "metrics") for option in (f"--{name}-port", "0")]
    process = start("serve", LOCAL, *ports)
    assert process.stdout is not None
    panel = []
    while "tandem generate" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
        panel.append(line)
    http = next(line for line in panel if "HTTP" in line).split()[2]
    with urllib.request.urlopen(f"{http}/v2/health/ready", timeout=30) as answer:
        assert answer.status == 200
    run_id = run_id_of(process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert find_processes(run_id) == []


def test_interrupted_generate_leaves_nothing() -> None:
    process = start("generate", "Hello", "--deployment", LOCAL)
    run_id = run_id_of(process)
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert out.strip() == ""
    assert "Traceback" not in said
    assert find_processes(run_id) == []
