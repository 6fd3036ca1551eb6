"""Who a worker is: what its checkpoint says, in the form in which all engines say it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tandem.deployment import Deployment, Worker
from tandem.engines.identity import make_worker_id
from tandem.engines.tensorrt_llm.arguments import section_of
from tandem.engines.tensorrt_llm.library import Library
from tandem.errors import TandemError
from tandem.messages import Feature, KvFormat, LibraryTransfer, WorkerInfo

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Shape:
    """What of a model's ``config.json`` concerns KV and requests."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int


def read_shape(model_dir: Path) -> Shape:
    """Of any architecture: TensorRT-LLM knows more of them than ``torch``. Those with vision or sound keep it in
    ``text_config``.

    Raises:
        TandemError: ``invalid_request``, naming file and field.
    """
    path = model_dir / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        raw = raw.get("text_config", raw)
        heads = raw["num_attention_heads"]
        return Shape(
            num_layers=raw["num_hidden_layers"],
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            vocab_size=raw["vocab_size"],
            context=raw["max_position_embeddings"],
        )
    except KeyError as error:
        raise TandemError("invalid_request", f"{path}: the field {error} is missing") from error
    except (OSError, ValueError) as error:
        raise TandemError(
            "invalid_request", f"cannot read {path}: {error}; model.path must hold a checkpoint"
        ) from error


def make_kv_format(deployment: Deployment, worker: Worker, shape: Shape) -> KvFormat:
    """The library arranges KV as it likes; both ends have the same one, so its name stands for the layout.

    Raises:
        TandemError: ``invalid_request``: the checkpoint cannot be read.
    """
    section = section_of(worker)
    dtype = deployment.model.dtype if section.kv_dtype == "auto" else section.kv_dtype
    block_size = deployment.kv.block_size
    return KvFormat(
        fingerprint=fingerprint(Path(deployment.model.path)),
        dtype=dtype,
        layout="tensorrt_llm",
        block_size=block_size,
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        slice_bytes=2 * block_size * shape.head_dim * ELEMENT_BYTES[dtype],
    )


def make_info(
    deployment: Deployment, worker: Worker, epoch: int, library: Library, kv: KvFormat, shape: Shape
) -> WorkerInfo:
    """Without the address of claims, which is known later.

    Raises:
        TandemError: ``invalid_request``: the context that is asked for is longer than the model's.
    """
    section = section_of(worker)
    features: list[Feature] = []
    if section.lora:
        features.append("lora")
    if section.guided_decoding is not None:
        features.append("guided_decoding")
    return WorkerInfo(
        worker_id=make_worker_id(worker),
        epoch=epoch,
        stage=worker.stage,
        engine="tensorrt_llm",
        kv=kv,
        partition=worker.partition,
        vocab_size=shape.vocab_size,
        max_model_len=find_max_model_len(deployment, shape),
        max_batch_size=worker.max_batch_size,
        library=LibraryTransfer(library=f"tensorrt_llm {library.version}", backend=section.cache_transceiver),
        features=features,
    )


def find_max_model_len(deployment: Deployment, shape: Shape) -> int:
    """Most tokens of prompt and answer together.

    Raises:
        TandemError: ``invalid_request``: the deployment asks for more than the model's own.
    """
    asked = deployment.model.max_model_len
    if asked is not None and asked > shape.context:
        raise TandemError("invalid_request", f"model.max_model_len: {asked}; the model's context is {shape.context}")
    return asked or shape.context


def fingerprint(model_dir: Path) -> str:
    """What ``build/`` wrote beside a checkpoint; else a hash over its configuration, and over each file of weights its
    size and first MiB, where its tensors are listed: reading all of it would take minutes.

    Raises:
        TandemError: ``invalid_request``: there are no weights, or they cannot be read.
    """
    try:
        if (written := model_dir / "tandem.json").is_file():
            return str(json.loads(written.read_bytes())["fingerprint"])
        digest = blake2b((model_dir / "config.json").read_bytes(), digest_size=16)
        weights = sorted(path for path in model_dir.iterdir() if path.suffix in (".safetensors", ".bin"))
        if not weights:
            raise TandemError("invalid_request", f"model.path: no *.safetensors or *.bin file in {model_dir}")
        for path in weights:
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(SAMPLE_BYTES))
    except (OSError, ValueError, KeyError) as error:
        raise TandemError("invalid_request", f"model.path: cannot read {model_dir}: {error}") from error
    return digest.hexdigest()
