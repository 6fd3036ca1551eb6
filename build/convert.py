"""Makes what Tandem's engines load of a GGUF file or a Hugging Face directory: ``build/convert.py SOURCE OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conversion.terminal import convert_showing, fail
from tandem.errors import TandemError


def main(
    source: Annotated[Path, typer.Argument(help="A GGUF file, or a local Hugging Face directory.")],
    out: Annotated[Path, typer.Argument(help="Directory to write; replaced if an earlier conversion is there.")],
) -> None:
    """Convert a checkpoint of the Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM2). Quick when nothing changed."""
    try:
        convert_showing(source, out)
    except TandemError as error:
        fail(error)


if __name__ == "__main__":
    typer.run(main)
