"""Writes what `tandem build` and `tandem serve` say of each recipe, done dry: ``python docs/outlines/write.py``.

A test holds the files to what the commands print.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

from tandem.cli import app

ROOT = Path(__file__).parents[2]
BUILD = ["build", "build/recipes/{name}.toml", "--dry-run", "--out", "/engines"]
SERVE = ["serve", "deployments/tensorrt_llm/{name}.toml", "--dry-run", "--for-image"]


def outline(name: str) -> str:
    """The page of one recipe."""
    page = f"# {name}\n\nWritten by `python docs/outlines/write.py`; see [build.md](../build.md).\n"
    for command in (BUILD, SERVE):
        words = [word.format(name=name) for word in command]
        page += f"\n```console\n$ tandem {' '.join(words)}\n{run(words)}```\n"
    return page


def run(words: list[str]) -> str:
    """What a command prints."""
    said = io.StringIO()
    words = [str(ROOT / word) if word.endswith(".toml") else word for word in words]
    with contextlib.redirect_stdout(said):
        app(words, standalone_mode=False)
    return said.getvalue()


def main() -> None:
    for recipe in sorted((ROOT / "build" / "recipes").glob("*.toml")):
        page = Path(__file__).parent / f"{recipe.stem}.md"
        page.write_text(outline(recipe.stem))
        print(page.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
