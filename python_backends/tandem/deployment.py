"""The deployment file: which model, which workers, where, and the limits. Read once, at the edge."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tandem.errors import TandemError
from tandem.messages import StageName

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
WorkerName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
ByteSize = Annotated[str, Meta(pattern=r"^[1-9][0-9]*(KiB|MiB|GiB)$")]

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: an unknown field is an error."""


class Model(Section, frozen=True, kw_only=True):
    """The checkpoint, as ``build/`` writes it, and how it is computed."""

    path: str
    """Directory with config.json, *.safetensors and tokenizer.json; relative to the deployment file."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and answer together; the model's own context when left out."""


class Server(Section, frozen=True, kw_only=True):
    """Where Triton listens. Port 0 picks a free one."""

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002


class Limits(Section, frozen=True, kw_only=True):
    """What is refused, and how long anything may take."""

    max_requests: PositiveInt = 256
    """Requests that one orchestrator has in hand; one more is refused at once."""
    default_max_tokens: PositiveInt = 256
    request_timeout_s: PositiveFloat = 300.0
    """Deadline of a request that names none."""
    retry_after_s: PositiveFloat = 1.0


class Kv(Section, frozen=True, kw_only=True):
    """KV cache blocks and their hand-over."""

    block_size: Annotated[int, Meta(ge=1, le=256)] = 16
    """Tokens per block."""
    lease_s: PositiveFloat = 30.0
    transfer_timeout_s: PositiveFloat = 10.0


class Worker(Section, frozen=True, kw_only=True):
    """One engine behind one Triton stage model of the same name."""

    name: WorkerName
    stage: StageName
    engine: Literal["torch"] = "torch"
    device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:[0-9]+)?)$")] = "cpu"
    threads: PositiveInt | None = None
    """CPU threads of the engine; when left out, the machine's cores are shared out evenly."""
    max_batch_size: PositiveInt = 32
    """Sequences in one decode step."""
    max_batch_tokens: PositiveInt = 2048
    """Prompt tokens in one prefill step; one longer prompt still goes alone."""
    kv_memory: ByteSize = "1GiB"
    max_queue: PositiveInt = 256
    """Requests that wait in this worker; one more is refused at once."""

    @property
    def kv_bytes(self) -> int:
        """``kv_memory`` in bytes."""
        return int(self.kv_memory[:-3]) * _UNITS[self.kv_memory[-3:]]


class Deployment(Section, frozen=True, kw_only=True):
    """A whole deployment."""

    name: WorkerName
    model: Model
    worker: list[Worker]
    server: Server = Server()
    limits: Limits = Limits()
    kv: Kv = Kv()

    def workers(self, stage: StageName) -> list[Worker]:
        """The workers of one stage, in file order."""
        return [w for w in self.worker if w.stage == stage]

    def find_worker(self, name: str) -> Worker:
        """The worker called ``name``.

        Raises:
            TandemError: there is none.
        """
        for worker in self.worker:
            if worker.name == name:
                return worker
        known = ", ".join(w.name for w in self.worker)
        raise TandemError("not_found", f"worker {name!r} is not in the deployment; it has {known}")

    def threads_of(self, worker: Worker) -> int:
        """CPU threads of one worker's engine: as given, or an even share of the cores."""
        if worker.threads is not None:
            return worker.threads
        return max(1, (os.cpu_count() or 1) // len(self.worker))


def load_deployment(path: Path) -> Deployment:
    """Read and check a deployment file (``.toml``), or the resolved copy that a running server keeps (``.json``).

    Raises:
        TandemError: ``invalid_request``, naming file, field, value and what was expected.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TandemError("invalid_request", f"cannot read the deployment file {path}: {error.strerror}") from error
    try:
        if path.suffix == ".json":
            return msgspec.json.decode(data, type=Deployment)
        content = msgspec.toml.decode(data)
        deployment = msgspec.convert(content, Deployment)
    except msgspec.ValidationError as error:
        raise TandemError("invalid_request", f"{path}: {_locate(str(error), content)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TandemError("invalid_request", f"{path}: {error}") from error
    _check(path, deployment)
    model_path = str((path.parent / deployment.model.path).resolve())
    return msgspec.structs.replace(deployment, model=msgspec.structs.replace(deployment.model, path=model_path))


def _locate(problem: str, content: Any) -> str:
    """A problem that msgspec found, with the field first and its value: ``worker[0].device: 'gpu': Expected …``."""
    what, _, place = problem.partition(" - at `$.")
    place = place.rstrip("`")
    value = content
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", place):
        value = value[int(index) if index else name]
    shown = "" if isinstance(value, dict | list) else f" {value!r}:"
    return f"{place}:{shown} {what}" if place else what


def _check(path: Path, deployment: Deployment) -> None:
    """The rules that span fields."""
    names = [w.name for w in deployment.worker]
    problem: str | None = None
    if duplicate := next((n for n in names if names.count(n) > 1), None):
        problem = f"worker.name: {duplicate!r} stands twice; names must differ"
    elif reserved := next((n for n in names if n in ("llm", "ensemble", "preprocess")), None):
        problem = f"worker.name: {reserved!r} is the name of a model that Tandem adds; choose another"
    elif not deployment.workers("prefill"):
        problem = 'worker: no worker has stage = "prefill"; add one'
    elif not deployment.workers("decode"):
        problem = 'worker: no worker has stage = "decode"; add one'
    if problem:
        raise TandemError("invalid_request", f"{path}: {problem}")


def to_json(deployment: Deployment) -> bytes:
    """The resolved deployment, as ``load_deployment`` reads it back."""
    return msgspec.json.format(msgspec.json.encode(deployment), indent=2)


def override(deployment: Deployment, **server: Any) -> Deployment:
    """A copy with some ``[server]`` fields replaced (None leaves a field as it is)."""
    given = {k: v for k, v in server.items() if v is not None}
    return msgspec.structs.replace(deployment, server=msgspec.structs.replace(deployment.server, **given))
