"""The ``[[worker]]`` sections of a deployment that serve a recipe: what the engine is told of it."""

from __future__ import annotations

from typing import Any

import msgspec

from tandem.deployment import Deployment, Kv, Model, TensorRtLlm, Worker
from tandem.engines.tensorrt_llm.arguments import make_arguments
from tandem.engines.tensorrt_llm.library import Library
from tandem.messages import KvFormat, StageName
from tandem.recipes.recipe import Recipe

_SHARED = ("tensor_parallel_size", "pipeline_parallel_size", "max_batch_size", "max_batch_tokens")
_OWN = (
    "engine_dir",
    "expert_parallel_size",
    "attention_data_parallel",
    "kv_fraction",
    "kv_dtype",
    "cache_transceiver",
    "max_tokens_in_buffer",
)


def make_worker(recipe: Recipe, name: StageName, engine_dir: str | None) -> Worker:
    """One worker of a stage; which hosts and devices, is the deployment's to say."""
    stage = recipe.stage(name)
    own = TensorRtLlm(
        engine_dir=engine_dir,
        expert_parallel_size=stage.expert_parallel_size,
        attention_data_parallel=stage.attention_data_parallel,
        kv_fraction=stage.kv_fraction,
        kv_dtype=stage.kv_dtype,
        cache_transceiver=recipe.cache_transceiver,
        max_tokens_in_buffer=stage.max_input_len,
    )
    each = stage.ranks // stage.hosts
    return Worker(
        name=f"{name}_0",
        stage=name,
        engine="tensorrt_llm",
        tensor_parallel_size=stage.tensor_parallel_size,
        pipeline_parallel_size=stage.pipeline_parallel_size,
        hosts=[f"host-{index}" for index in range(stage.hosts)] if stage.hosts > 1 else [],
        devices=[f"cuda:{index}" for index in range(each)] * stage.hosts,
        max_batch_size=stage.max_batch_size,
        max_batch_tokens=stage.max_num_tokens,
        tensorrt_llm=own,
    )


def to_toml(recipe: Recipe, workers: list[Worker]) -> str:
    """The part of a deployment file that follows from the recipe; server, hosts and devices are still to be chosen."""
    lines = ["[model]", f"path = {_value(recipe.checkpoint)}", f"dtype = {_value(recipe.dtype)}"]
    lines += [f"max_model_len = {recipe.decode.max_seq_len}", "", "[kv]", f"block_size = {recipe.tokens_per_block}"]
    for worker in workers:
        lines += ["", "[[worker]]", f"name = {_value(worker.name)}", f"stage = {_value(worker.stage)}"]
        lines += [f"engine = {_value(worker.engine)}"]
        lines += [f"{field} = {_value(getattr(worker, field))}" for field in _SHARED]
        lines += [f"hosts = {_value(worker.hosts)}   # names to be replaced"] if worker.hosts else []
        lines += [f"devices = {_value(worker.devices)}", "[worker.tensorrt_llm]"]
        given = {field: getattr(worker.tensorrt_llm, field) for field in _OWN}
        lines += [f"{field} = {_value(value)}" for field, value in given.items() if value is not None]
    return "\n".join(lines) + "\n"


def llm_arguments(recipe: Recipe, worker: Worker) -> dict[str, Any]:
    """What the engine gives to ``tensorrt_llm.LLM`` for a worker, with TensorRT-LLM's classes as plain dictionaries."""
    library = Library("1.2", dict.fromkeys(("KvCacheConfig", "CacheTransceiverConfig", "LoraConfig"), dict))
    model = Model(path=recipe.checkpoint, dtype=recipe.dtype, max_model_len=recipe.decode.max_seq_len)
    deployment = Deployment(name="recipe", model=model, kv=Kv(block_size=recipe.tokens_per_block), worker=[worker])
    shape = recipe.shape
    kv = KvFormat(
        fingerprint="",
        dtype=recipe.dtype,
        layout="",
        block_size=recipe.tokens_per_block,
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        slice_bytes=0,
    )
    return make_arguments(library, deployment, worker, kv, recipe.decode.max_seq_len)


def to_yaml(values: dict[str, Any], indent: str = "") -> str:
    """Nested dictionaries of plain values."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", to_yaml(value, f"{indent}  ").rstrip("\n")]
        else:
            lines.append(f"{indent}{name}: {_value(value)}")
    return "\n".join(lines) + "\n"


def find_difference(recipe: Recipe, worker: Worker) -> str | None:
    """In what a deployment's worker is not what the recipe says, as ``field: value: recipe's``; None: in nothing. The
    engine's place counts only in whether there is one."""
    if worker.stage == "both":
        return "stage: 'both': a recipe has a prefill and a decode worker"
    ours = make_worker(recipe, worker.stage, worker.tensorrt_llm.engine_dir if worker.tensorrt_llm else None)
    for field in (*_SHARED, "engine"):
        if getattr(worker, field) != getattr(ours, field):
            return f"{field}: {getattr(worker, field)!r}: the recipe's is {getattr(ours, field)!r}"
    for field in _OWN:
        value, expected = getattr(worker.tensorrt_llm, field), getattr(ours.tensorrt_llm, field)
        if value != expected:
            return f"tensorrt_llm.{field}: {value!r}: the recipe's is {expected!r}"
    return None


def _value(value: object) -> str:
    """As TOML has it: like JSON for all that is used here."""
    return msgspec.json.encode(value).decode().replace(",", ", ")
