"""Run inside the workers' network, in a container without secrets: tries every door, and prints which let it in.

The last line is a JSON object: how many doors were tried, and those that opened.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc

from tandem.secret_files import make_secrets

WORKERS = ("prefill", "decode", "group")
TIMEOUT_S = 5.0
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def speaks(host: str, port: int, said: bytes, certificate: Path | None = None, *, tls: bool = True) -> bool:
    """Whether a server has an answer, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"] if said is HTTP2 else ["http/1.1"])
    if certificate is not None:
        context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as plain:
            talk = context.wrap_socket(plain) if tls else plain
            talk.sendall(said)
            return bool(talk.recv(100))
    except (OSError, ssl.SSLError):
        return False


def serves_plain_grpc(host: str) -> bool:
    with grpc.insecure_channel(f"{host}:8001") as channel:
        try:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
        return True


def answers(url: str, body: bytes | None = None) -> bool:
    """Whether an HTTP request succeeds."""
    try:
        with urllib.request.urlopen(url, body, timeout=TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def logs_in(host: str) -> bool:
    options = ["-F", "none", "-p", "2222", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    options += ["-o", "UserKnownHostsFile=/dev/null"]
    return subprocess.run(["ssh", *options, f"tandem@{host}", "true"], check=False, timeout=30).returncode == 0


def main() -> None:
    made = Path(tempfile.mkdtemp())
    make_secrets(made)  # of another deployment
    strangers = made / "worker"
    doors: dict[str, Callable[[], bool]] = {"ssh to rank": lambda: logs_in("rank")}
    for host in WORKERS:
        doors |= {
            f"plain gRPC of {host}": lambda host=host: serves_plain_grpc(host),
            f"gRPC of {host} without a certificate": lambda host=host: speaks(host, 8001, HTTP2),
            f"gRPC of {host} with another's": lambda host=host: speaks(host, 8001, HTTP2, strangers),
            f"HTTP of {host}": lambda host=host: speaks(host, 8000, METRICS, tls=False),
        }
    for host in ("gateway", *WORKERS):
        doors |= {
            f"plain metrics of {host}": lambda host=host: speaks(host, 8002, METRICS, tls=False),
            f"metrics of {host} without a certificate": lambda host=host: speaks(host, 8002, METRICS),
            f"metrics of {host} with another's": lambda host=host: speaks(host, 8002, METRICS, strangers),
        }
    for path in ("repository/index", "repository/models/llm/unload", "systemsharedmemory/region/x/register", "logging"):
        doors[f"management of gateway: {path}"] = lambda path=path: answers(f"http://gateway:8000/v2/{path}", b"{}")
    for stage in WORKERS:
        doors[f"stage {stage} at gateway"] = lambda stage=stage: answers(f"http://gateway:8000/v2/models/{stage}")
    assert answers("http://gateway:8000/v2/health/ready"), "the gateway is not reached at all"
    print(json.dumps({"tried": len(doors), "opened": [door for door, opens in doors.items() if opens()]}))
