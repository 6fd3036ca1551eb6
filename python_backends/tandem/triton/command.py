"""The command line of the Triton server, and what it needs of the machine's shared memory."""

from __future__ import annotations

import shutil

from tandem.deployment import Deployment
from tandem.errors import TandemError
from tandem.triton.ports import Ports
from tandem.triton.processes import shared_memory_prefix
from tandem.triton.run_directory import RunDirectory
from tandem.triton.runtime import TritonRuntime

LOOPBACK = "127.0.0.1"
_MIB = 1 << 20
_SHM_BYTES = 16 * _MIB
"""Shared memory of one model instance at start, and the step by which it grows (Triton's own default is 1 MiB)."""

_BLS_THREADS = 64
"""BLS calls that wait at once in one model instance; long polls are such calls (Triton's own default is 32)."""

_STUB_TIMEOUT_S = 600
"""For a model to load: an engine reads its weights meanwhile."""

_EXIT_TIMEOUT_S = 5
"""For models to unload when the server is asked to stop; requests have been drained before. Triton 2.51 keeps an error
that left on a gRPC stream, and the model with it, for ever: such a model is never unloaded, however long one waits."""

_PING_INTERVAL_MS = 1000
"""Orchestrators elsewhere ask every 2 s whether a connection still is one; more often than this is taken for an attack,
and Triton's own default is 5 minutes."""

_HEADERS = "(?i)traceparent"
"""Of gRPC: they become parameters of a request. Triton 2.51 does the same over HTTP, but not on ``/generate``."""


MANAGEMENT_HEADER = "tandem-management"
_MANAGEMENT = "model-repository,shared-memory,trace,logging"
"""Triton's interfaces for who runs it; whoever calls them has to know ``tandem.keys.management_word``."""


def server_command(
    runtime: TritonRuntime, deployment: Deployment, run: RunDirectory, ports: Ports, management_word: str
) -> list[str]:
    """The whole command."""
    host = deployment.server.host
    restricted = f"{_MANAGEMENT}:{MANAGEMENT_HEADER}={management_word}"
    python = {
        "shm-default-byte-size": _SHM_BYTES,
        "shm-growth-byte-size": _SHM_BYTES,
        "shm-region-prefix-name": shared_memory_prefix(run.run_id),
        "stub-timeout-seconds": _STUB_TIMEOUT_S,
        "thread-pool-size": _BLS_THREADS,
    }
    command = [
        str(runtime.binary),
        f"--model-repository={run.models}",
        f"--backend-directory={runtime.backends}",
        f"--http-address={http_host(deployment)}",
        f"--grpc-address={host}",
        f"--metrics-address={LOOPBACK if deployment.tls else host}",  # where there is TLS, a door stands before it
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        *_tls_options(deployment),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        "--disable-auto-complete-config",  # the templates are complete; saves one stub start per model
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
        f"--grpc-http2-min-recv-ping-interval-without-data={_PING_INTERVAL_MS}",
        f"--grpc-header-forward-pattern={_HEADERS}",
        *(f"--backend-config=python,{key}={value}" for key, value in python.items()),
    ]
    if runtime.caches is not None:
        command.append(f"--cache-directory={runtime.caches}")
    return command


def http_host(deployment: Deployment) -> str:
    """Where Triton's HTTP API listens. It knows no TLS, so it is not for others where they need certificates."""
    return LOOPBACK if deployment.hides_workers else deployment.server.host


def _tls_options(deployment: Deployment) -> list[str]:
    if (tls := deployment.tls) is None or not deployment.hides_workers:
        return []
    files = {"server-cert": tls.certificate, "server-key": tls.key, "root-cert": tls.ca}
    return ["--grpc-use-ssl-mutual=true", *(f"--grpc-{name}={path}" for name, path in files.items())]


def check_shared_memory(models: int) -> None:
    """Whether ``/dev/shm`` holds the regions of that many model instances.

    Raises:
        TandemError: ``environment``, naming need, have and the option of Docker.
    """
    need, free = models * _SHM_BYTES, shutil.disk_usage("/dev/shm").free
    if free < need:
        raise TandemError(
            "environment",
            f"/dev/shm has {free // _MIB} MiB free; Triton's models need {need // _MIB} MiB. "
            "Remove what fills it, or start the container with --shm-size=1g",
        )
