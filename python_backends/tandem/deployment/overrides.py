"""What a command line changes in a deployment."""

from __future__ import annotations

from typing import Any

import msgspec

from tandem.deployment.check import find_part_problem
from tandem.deployment.deployment import Deployment
from tandem.errors import TandemError


def split_parts(text: str | None) -> list[str] | None:
    """``gateway,prefill_0`` as ``server.only``; None as it is."""
    return [part.strip() for part in text.split(",")] if text is not None else None


def override(deployment: Deployment, **server: Any) -> Deployment:
    """A copy with some ``[server]`` fields replaced (None leaves a field as it is).

    Raises:
        TandemError: ``invalid_request``: what is to run here is not there, or could not reach the rest.
    """
    given = {k: v for k, v in server.items() if v is not None}
    new = msgspec.structs.replace(deployment, server=msgspec.structs.replace(deployment.server, **given))
    if problem := find_part_problem(new):
        raise TandemError("invalid_request", problem)
    return new
