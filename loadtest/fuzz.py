"""Malformed requests by the thousand against one real server whose engines are simulated. ``make fuzz``.

Each must be answered, by an answer or by an error that says what is wrong; no process may die or be added; and a good
request is served as before. Prints a summary; exit status 1 where anything else happened.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import msgspec
from malformed import Malformed, make_requests
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tritonclient.grpc import service_pb2

from tandem.cli.client import Client
from tandem.deployment import Deployment, Kv, load_deployment, override
from tandem.engines.sim.tokens import expected_answer
from tandem.errors import ERROR_CODES
from tandem.messages import Hello, HelloReply, WorkerInfo
from tandem.triton.processes import find_processes
from tandem.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
ANSWER_TIMEOUT_S = 20.0
"""Only what hangs takes this long."""
SETTLE_S = 30.0
AT_ONCE = 8
GOOD_PROMPT, GOOD_TOKENS, GOOD_SEED = [1, 2, 3, 4, 5], 6, 5
_CODE = re.compile(r"\[([a-z_]+)\]")
_SERVICE = "/inference.GRPCInferenceService"


@dataclass
class Findings:
    """What became of the requests."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and outcome."""
    wrong: list[str] = field(default_factory=list)
    """What should not have happened."""

    @property
    def answered(self) -> int:
        """Requests that had an end."""
        return self.outcomes.total()


def make_deployment() -> Deployment:
    """``deployments/sim.toml``, whose workers take no time at all and whose leases are short."""
    plain = override(load_deployment(ROOT / "deployments" / "sim.toml"), http_port=0, grpc_port=0, metrics_port=0)
    workers = [msgspec.structs.replace(w, profile="instant", timing={"start_s": 0.0}) for w in plain.worker]
    return msgspec.structs.replace(plain, name="fuzz", worker=workers, kv=Kv(lease_s=1.0))


def fuzz(server: TritonServer, seed: int, count: int) -> Findings:
    """Send ``count`` malformed requests, some at once; what came of them, and of the server."""
    findings = Findings()
    before = _look(server)
    _check_good(server, findings, "before")
    with grpc.insecure_channel(server.grpc_url) as channel, ThreadPoolExecutor(AT_ONCE) as pool:
        requests = make_requests(seed, count, list(before.workers.values()))
        for request, outcome in pool.map(lambda r: (r, _send(server, channel, r)), requests):
            findings.outcomes[request.kind, outcome] += 1
            if outcome.startswith("!"):
                findings.wrong.append(f"{outcome}: {request.kind} to {request.model!r}: {request.body[:300]!r}")
    _check_good(server, findings, "after")
    _check_same(server, before, findings)
    return findings


@dataclass(frozen=True)
class _Look:
    """Who is there."""

    processes: set[int]
    workers: dict[str, WorkerInfo]


def _look(server: TritonServer) -> _Look:
    run_id = (server.run_directory / "run_id").read_text()
    workers = {}
    with Client(server.grpc_url) as client:
        for worker in server.deployment.worker:
            reply = client.call(worker.name, Hello())
            if isinstance(reply, HelloReply):
                workers[worker.name] = reply.worker
    return _Look({process.pid for process in find_processes(run_id)}, workers)


# ---------------------------------------------------------------- sending


def _send(server: TritonServer, channel: grpc.Channel, request: Malformed) -> str:
    """How it ended: what is wrong begins with an exclamation mark."""
    try:
        match request.kind:
            case "lane":
                return _stream(channel, _lane_request(request).SerializeToString())
            case "grpc" | "grpc bytes":
                return _stream(channel, request.body, may_be_silent=request.kind == "grpc bytes")
            case _:
                return _post(server, request)
    except Exception as error:
        return f"! {type(error).__name__}: {str(error)[:200]}"


def _lane_request(request: Malformed) -> Any:
    message = service_pb2.ModelInferRequest(model_name=request.model, raw_input_contents=[request.body])
    message.inputs.add(name="lane_request", datatype="UINT8", shape=[1, len(request.body)])
    return message


def _stream(channel: grpc.Channel, body: bytes, may_be_silent: bool = False) -> str:
    """One message on a stream of its own, read to its end. Triton ends one that carries no protobuf in silence."""
    call = channel.stream_stream(
        f"{_SERVICE}/ModelStreamInfer", lambda data: data, service_pb2.ModelStreamInferResponse.FromString
    )
    outcome = "end without response" if may_be_silent else "! no response"
    try:
        for response in call(iter([body]), timeout=ANSWER_TIMEOUT_S):
            outcome = _judge(response.error_message) if response.error_message else "answer"
    except grpc.RpcError as error:
        status = error.code()
        if status in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return f"! gRPC status {status.name}: {error.details()}"
        return f"gRPC status {status.name}"
    return outcome


def _post(server: TritonServer, request: Malformed) -> str:
    headers = {} if request.header_length is None else {"Inference-Header-Content-Length": request.header_length}
    status, text = _call(server, f"/v2/models/{request.model}/{request.kind}", request.body, headers)
    return "answer" if status == 200 and '"error"' not in text else _judge(text)


def _call(server: TritonServer, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """HTTP POST; status and body."""
    host, port = server.http_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def _judge(text: str) -> str:
    """An error, named by its code where it is ours."""
    if "internal error" in text or "Traceback" in text:
        return f"! {text[:300]}"
    codes = [code for code in _CODE.findall(text) if code in ERROR_CODES]
    return f"[{codes[0]}]" if codes else "refused by Triton"


# ---------------------------------------------------------------- what must hold


def _check_good(server: TritonServer, findings: Findings, when: str) -> None:
    with Client(server.grpc_url) as client:
        reply = client.call(server.deployment.worker[0].name, Hello())
    assert isinstance(reply, HelloReply)
    expected = expected_answer(GOOD_SEED, GOOD_PROMPT, GOOD_TOKENS, reply.worker.vocab_size)
    body = {"input_ids": GOOD_PROMPT, "max_tokens": GOOD_TOKENS, "seed": GOOD_SEED, "ignore_eos": True}
    for _ in range(3):
        status, text = _call(server, "/v2/models/llm/generate", json.dumps(body).encode(), {})
        if status != 200 or json.loads(text)["output_ids"] != expected:
            findings.wrong.append(f"! a good request {when} the others had {text} for {expected}")


def _check_same(server: TritonServer, before: _Look, findings: Findings) -> None:
    """The same processes, engines of the same epochs, and nothing in hand any more."""
    after = _look(server)
    if after.processes != before.processes:
        findings.wrong.append(f"! processes {sorted(before.processes)} became {sorted(after.processes)}")
    epochs = [{name: info.epoch for name, info in look.workers.items()} for look in (before, after)]
    if epochs[0] != epochs[1]:
        findings.wrong.append(f"! engines were started again: epochs {epochs[0]} became {epochs[1]}")
    end = time.monotonic() + SETTLE_S
    while (left := _in_hand(server)) and time.monotonic() < end:
        time.sleep(0.2)
    if left:
        findings.wrong.append(f"! left over (queued, running, blocks, handles): {left}")


def _in_hand(server: TritonServer) -> dict[str, list[int]]:
    left = {}
    with Client(server.grpc_url) as client:
        for worker in server.deployment.worker:
            reply = client.call(worker.name, Hello())
            assert isinstance(reply, HelloReply)
            load = reply.load
            values = [load.queued, load.running, load.blocks_used, load.handles_held]
            if any(values):
                left[worker.name] = values
    return left


def main() -> int:
    """Fuzz, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    console = Console()
    began = time.monotonic()
    with TritonServer(make_deployment()) as server:
        findings = fuzz(server, args.seed, args.requests)
    table = Table("kind", "outcome", "requests", title=f"{args.requests} malformed requests, seed {args.seed}")
    for (kind, outcome), count in sorted(findings.outcomes.items()):
        table.add_row(kind, escape(outcome), str(count))
    console.print(table)
    for problem in findings.wrong[:20]:
        console.print(problem, markup=False)
    console.print(
        f"{findings.answered} answered in {time.monotonic() - began:.0f} s; {len(findings.wrong)} that should not be"
    )
    return 1 if findings.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
