"""``tandem build``: what TensorRT-LLM loads, made of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.terminal import errors, showing_progress
from tandem.recipes.plan import make_plan
from tandem.recipes.recipe import load_recipe
from tandem.recipes.report import describe, describe_memory
from tandem.recipes.run import run_plan
from tandem.triton.home import home_dir


def build(
    recipe: Annotated[Path, typer.Argument(help="The recipe, e.g. build/recipes/llama-3.1-8b.toml.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; .tandem/engines when left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Build what TensorRT-LLM serves: engines, or the settings with which it loads a checkpoint."""
    plan = make_plan(load_recipe(recipe), (out or home_dir() / "engines").absolute())
    if dry_run:
        typer.echo(describe(plan), nl=False)
        return
    errors.print("\n".join(describe_memory(plan.recipe)), markup=False, soft_wrap=True)
    with showing_progress("Building") as progress:
        run_plan(plan, progress)
    typer.echo(plan.worker_text, nl=False)
    errors.print(f"written to {plan.worker_file}", markup=False, soft_wrap=True)
