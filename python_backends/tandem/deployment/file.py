"""From the file to a deployment, checked and with absolute paths, and back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec

from tandem.deployment.check import check
from tandem.deployment.deployment import Deployment
from tandem.environment import expand
from tandem.errors import TandemError


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
        content = expand(msgspec.toml.decode(data), os.environ)
        deployment = msgspec.convert(content, Deployment)
    except msgspec.ValidationError as error:
        raise TandemError("invalid_request", f"{path}: {locate(str(error), content)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TandemError("invalid_request", f"{path}: {error}") from error
    check(path, deployment)
    return _resolve(path.parent.resolve(), deployment)


def _resolve(directory: Path, deployment: Deployment) -> Deployment:
    """With absolute paths; those given are relative to ``directory``."""

    def resolve(section: Any, *fields: str) -> Any:
        paths = {field: str((directory / getattr(section, field)).resolve()) for field in fields}
        return msgspec.structs.replace(section, **paths)

    workers = []
    for worker in deployment.worker:
        worker = resolve(worker, "kv_disk_path") if worker.kv_disk_path else worker
        if section := worker.tensorrt_llm:
            section = resolve(section, "engine_dir") if section.engine_dir else section
            section = msgspec.structs.replace(section, lora=[resolve(adapter, "path") for adapter in section.lora])
        workers.append(msgspec.structs.replace(worker, tensorrt_llm=section))
    return msgspec.structs.replace(
        deployment,
        model=resolve(deployment.model, "path"),
        worker=workers,
        tracing=deployment.tracing.within(directory),
        tls=deployment.tls and resolve(deployment.tls, "ca", "certificate", "key"),
    )


def locate(problem: str, content: Any) -> str:
    """A problem that msgspec found, with the field first and its value: ``worker[0].stage: 'read': Invalid …``."""
    what, _, place = problem.partition(" - at `$.")
    place = place.rstrip("`")
    value = content
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", place):
        value = value[int(index) if index else name]
    shown = "" if isinstance(value, dict | list) else f" {value!r}:"
    return f"{place}:{shown} {what}" if place else what


def to_json(deployment: Deployment) -> bytes:
    """The resolved deployment, as ``load_deployment`` reads it back."""
    return msgspec.json.format(msgspec.json.encode(deployment), indent=2)
