"""The application that the commands belong to. Every foreseen error is a plain sentence and an exit code.

0: done. 1: something on this machine or on the server. 2: what was typed (as usual for command lines). 128 + n: ended
by signal n, Ctrl-C among them (130).
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from tandem.cli.build import build
from tandem.cli.doctor import doctor
from tandem.cli.explain import explain
from tandem.cli.generate import generate
from tandem.cli.secrets import secrets
from tandem.cli.serve import serve
from tandem.cli.status import status
from tandem.cli.terminal import Interrupted, catch_signals, errors
from tandem.errors import TandemError

_USAGE_CODES = ("invalid_request", "prompt_too_long")


class Application(typer.Typer):
    """Typer's application, with errors as sentences."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        catch_signals()
        try:
            return super().__call__(*args, **kwargs)
        except TandemError as error:
            errors.print(f"error: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(2 if error.code in _USAGE_CODES else 1)
        except Interrupted as interruption:
            sys.exit(128 + interruption.number)


app = Application(
    help="LLM serving on Triton Inference Server with prefill and decode taken apart.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (serve, build, generate, status, explain, doctor, secrets):
    app.command()(command)
