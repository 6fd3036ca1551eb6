"""Recipes of this checkout, changed in places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tandem.messages import StageName
from tandem.recipes.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[3]
NAMES = [path.stem for path in sorted((ROOT / "build/recipes").glob("*.toml"))]


def recipe(name: str, stage: StageName | None = None, **fields: Any) -> Recipe:
    """One of ours; with fields of a stage, or of the recipe, replaced."""
    found = load_recipe(ROOT / "build/recipes" / f"{name}.toml")
    if stage is None:
        return msgspec.structs.replace(found, **fields)
    changed: dict[str, Any] = {stage: msgspec.structs.replace(found.stage(stage), **fields)}
    return msgspec.structs.replace(found, **changed)
