"""The section ``[tracing]`` of a deployment file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta


class Tracing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where spans go. Nowhere when both are left out: then nothing is recorded."""

    endpoint: Annotated[str, Meta(pattern="^https?://")] | None = None
    """Of a collector that takes OTLP over HTTP, the path included: ``http://collector:4318/v1/traces``."""
    directory: str | None = None
    """For one file of OTLP's JSON lines for each process; relative to the deployment file."""
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Of the requests that come without ``traceparent``, those that are recorded. Others follow their caller."""

    def within(self, base: Path) -> Tracing:
        """With a directory that does not depend on where a process runs."""
        return self if self.directory is None else msgspec.structs.replace(self, directory=str(base / self.directory))

    @property
    def is_on(self) -> bool:
        """Whether spans are recorded."""
        return self.endpoint is not None or self.directory is not None
