"""The load tools against a real server: locust's users and the lean clients, all of whose requests are answered."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from live.drive import Job, run_client
from live.record_file import read_records

from tandem.triton.server import TritonServer

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_lean_clients_see_whole_answers(server: TritonServer, protocol: Literal["http", "grpc"]) -> None:
    inputs = {"text_input": "Once upon a time", "max_tokens": 5, "ignore_eos": True, "stream": True}
    job = Job(
        protocol=protocol, http_url=server.http_url, grpc_url=server.grpc_url, inputs=inputs, at_once=2, requests=4
    )
    outcome = run_client(job)
    refused = run_client(msgspec.structs.replace(job, inputs={**inputs, "max_tokens": 0}, requests=1)).records
    assert [record.error_code for record in refused] == ["invalid_request"]
    assert [(r.tokens, r.finish, len(r.gaps), r.error) for r in outcome.records] == [(5, "length", 4, "")] * 4
    assert all(r.ttft is not None and r.sent + r.ttft <= r.ended for r in outcome.records)


def test_locusts_users_and_its_statistics(server: TritonServer, tmp_path: Path) -> None:
    records_file = tmp_path / "records.jsonl"
    command = [
        sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary",
        "--host", server.http_url, "-u", "9", "-r", "9", "-t", "2s", "-s", "20",
        "--answer-tokens", "4", "--records", str(records_file),
        "ChatUser", "LeavingUser", "TenantUser",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    records = read_records(records_file)
    finished = Counter((r.kind, r.finish) for r in records)
    assert not [r.error for r in records if r.error]
    assert finished["leaver", "left"]
    assert finished["tenant", "length"], done.stderr
    assert {kind for kind, _ in finished} == {"chat", "leaver", "tenant"}
    assert all(row in done.stderr for row in ("TTFT, ms", "inter-token, ms", "finish left"))
