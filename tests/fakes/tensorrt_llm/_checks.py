"""Checks of what goes into ``LLM``: the model's directory, prompts, adapters, guides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorrt_llm._requests import LoRARequest, Misuse
from tensorrt_llm._results import RequestError


def read_config(model: Path, *, built: bool) -> dict[str, Any]:
    """``config.json`` of a checkpoint, or of a built engine in the form of a checkpoint's.

    Raises:
        ValueError: there is no such directory, or not one of the kind.
    """
    path = model / "config.json"
    if not path.is_file():
        raise ValueError(f"{model} is neither a local model directory nor a model of the Hugging Face Hub")
    found: dict[str, Any] = json.loads(path.read_text())
    if built != ("build_config" in found):
        raise ValueError(
            f"{model}: {'a checkpoint, not a built engine' if built else 'a built engine, not a checkpoint'}"
        )
    if not built:
        text: dict[str, Any] = found.get("text_config", found)
        return text
    length = found["build_config"].get("max_seq_len", 4096)
    return {**found.get("pretrained_config", {}), "max_position_embeddings": length}


def end_id_of(config: dict[str, Any]) -> int | None:
    """The first end token; the fake has no other use for a tokenizer."""
    found = config.get("eos_token_id")
    return found[0] if isinstance(found, list) else found


def token_ids_of(inputs: Any) -> list[int]:
    """The prompt's tokens.

    Raises:
        Misuse: it is text, or of a form that Tandem has no use for.
        ValueError: it is empty.
    """
    if isinstance(inputs, dict):
        inputs = inputs.get("prompt_token_ids")
    if not isinstance(inputs, list) or not all(isinstance(each, int) for each in inputs):
        raise Misuse(f"inputs of type {type(inputs)}: Tandem passes token ids, as a list or as prompt_token_ids")
    if not inputs:
        raise ValueError("The prompt must have at least one token")
    return inputs


def check_adapter(args: Any, request: Any) -> int | None:
    """The adapter's number.

    Raises:
        Misuse: the engine was not told of adapters, so the real one would leave it out.
        RequestError: it cannot be loaded.
    """
    if request is None:
        return None
    if not isinstance(request, LoRARequest):
        raise TypeError(f"lora_request must be LoRARequest, but got {type(request)}")
    if args.lora_config is None and not args.enable_lora:
        raise Misuse(
            "lora_request: LLM was built without lora_config, and the real one would answer without the adapter"
        )
    config = Path(request.lora_path) / "adapter_config.json"
    if not config.is_file():
        raise RequestError(f"Failed to load LoRA adapter: {config} is missing")
    rank = json.loads(config.read_text()).get("r", 0)
    if args.lora_config is not None and rank > args.lora_config.max_lora_rank:
        raise RequestError(f"Failed to load LoRA adapter: rank {rank} is over {args.lora_config.max_lora_rank}")
    return int(request.lora_int_id)


def check_guide(args: Any, sampling: Any) -> object:
    """What guides the answer, if anything.

    Raises:
        Misuse: the engine was built without a guide's backend, so the real one would leave it out.
    """
    guide = sampling.guided_decoding
    if guide is None:
        return None
    if args.guided_decoding_backend is None:
        raise Misuse("guided_decoding: LLM was built without guided_decoding_backend, and the real one would ignore it")
    return next((getattr(guide, name) for name in guide._described.fields if getattr(guide, name)), None)
