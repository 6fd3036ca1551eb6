"""``tandem secrets``: certificates and keys for a deployment of several servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.terminal import output
from tandem.secret_files import make_secrets, rotate_handle_key


def secrets(
    directory: Annotated[Path, typer.Argument(help="Where they are, or are to be.")],
    rotate_key: Annotated[
        bool, typer.Option("--rotate-key", help="Put a new handle key before the one that is there.")
    ] = False,
    owner: Annotated[int | None, typer.Option(help="User id to give the files to.")] = None,
    watch_owner: Annotated[int | None, typer.Option(help="The same for watch/, which is Prometheus's.")] = None,
) -> None:
    """Make a private authority, certificates, the handle key and ssh keys, or a new handle key. What is there stays."""
    if rotate_key:
        for file in rotate_handle_key(directory, owner=owner):
            output.print(f"{file}: a new key; it signs in a minute, and the one before is accepted beside it")
    elif make_secrets(directory, owner=owner, watch_owner=watch_owner):
        output.print(
            f"{directory}: made. gateway/ is for gateways, worker/ for workers, watch/ for Prometheus; keep ca/"
        )
    else:
        output.print(f"{directory}: has secrets already; nothing is changed")
