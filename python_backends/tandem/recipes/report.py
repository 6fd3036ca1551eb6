"""What a plan comes to, as text: memory first, then commands, then what is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from tandem.recipes.commands import Step
from tandem.recipes.flags import FLAGS, flags_of
from tandem.recipes.gpus import GPUS
from tandem.recipes.memory import RUNTIME_BYTES, estimate, gigabytes
from tandem.recipes.plan import STAGES, Plan
from tandem.recipes.recipe import Recipe, StageRecipe

Row = tuple[str, ...]


def describe(plan: Plan) -> str:
    """The whole text."""
    lines = [*describe_memory(plan.recipe), ""]
    for number, step in enumerate(plan.steps, 1):
        lines += [f"{number}. {step.title}, into {step.output}", *_format(step), ""]
    if not plan.steps:
        lines += ["Nothing is to be built: the PyTorch backend loads the checkpoint itself.", ""]
    for path, text in plan.files.items():
        what = "for a deployment file" if path == plan.worker_file else "which the engine gives to tensorrt_llm.LLM"
        lines += [f"Written to {path}, {what}:", *(f"    {line}".rstrip() for line in text.splitlines()), ""]
    if plan.steps:
        lines += ["Where each option was read, in NVIDIA/TensorRT-LLM:", *_sources(plan.steps)]
    return "\n".join(lines).rstrip("\n") + "\n"


def describe_memory(recipe: Recipe) -> Iterator[str]:
    """What each stage's fullest rank takes on the recipe's GPU, and what there is room for on others."""
    gpu = GPUS[recipe.gpu]
    yield f"{recipe.name}: {recipe.shape.parameters / 1e9:.2f} billion parameters ({recipe.source})"
    yield f"Memory of each rank on {gpu.title}; activations, runtime and so the KV cache are estimates:"
    rows: list[Row] = [("stage", "ranks", "weights", "activations", "runtime", "KV cache", "KV of a token", "room for")]
    for name in STAGES:
        stage = recipe.stage(name)
        found = estimate(recipe, stage, gpu)
        room = f"{found.tokens:,} tokens, {found.sequences:.1f} x {stage.max_seq_len:,}"
        parts = (found.weights, found.activations, RUNTIME_BYTES, found.kv_pool)
        token = f"{found.kv_per_token:,} B"
        rows.append((name, f"{stage.ranks} ({_split(stage)})", *map(gigabytes, parts), token, room))
    yield from _columns(rows)
    yield "Tokens of KV that the same ranks have room for on other GPUs:"
    rows = [("GPU", *STAGES)]
    rows += [(other.title, *(_room(recipe, recipe.stage(name), key) for name in STAGES)) for key, other in GPUS.items()]
    yield from _columns(rows)


def _split(stage: StageRecipe) -> str:
    parts = {"tp": stage.tensor_parallel_size, "pp": stage.pipeline_parallel_size, "ep": stage.expert_parallel_size}
    return " ".join(f"{name}{size}" for name, size in parts.items() if size > 1 or name == "tp")


def _room(recipe: Recipe, stage: StageRecipe, key: object) -> str:
    gpu = next(gpu for name, gpu in GPUS.items() if name == key)
    if stage.quantization not in gpu.quantizations:
        return f"no {stage.quantization}"
    found = estimate(recipe, stage, gpu)
    return f"{found.tokens:,}" if found.fits else "does not fit"


def _columns(rows: list[Row]) -> Iterator[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        yield "    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _format(step: Step) -> Iterator[str]:
    """An option a line, so that it can be read, and copied."""
    lines: list[list[str]] = [[]]
    for word in step.command:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    for index, line in enumerate(lines):
        yield "    " + ("  " if index else "") + " ".join(line) + (" \\" if index < len(lines) - 1 else "")


def _sources(steps: list[Step]) -> Iterator[str]:
    found = {str(FLAGS[step.tool][flag]): None for step in steps for flag in flags_of(step.command)}
    for source in found:
        used = {flag for step in steps for flag in flags_of(step.command) if str(FLAGS[step.tool][flag]) == source}
        yield f"    {source}: {', '.join(sorted(used))}"
