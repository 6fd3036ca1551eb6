"""What the sections of the file are made of: the kinds of value that a field takes."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
WorkerName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
ByteSize = Annotated[str, Meta(pattern=r"^[1-9][0-9]*(KiB|MiB|GiB)$")]
Device = Annotated[str, Meta(pattern=r"^(cpu|cuda(:[0-9]+)?)$")]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]+$")]
Address = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$")]
Subnet = Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]+/[0-9]+$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: an unknown field is an error."""


_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def to_bytes(size: ByteSize) -> int:
    """A size in bytes."""
    return int(size[:-3]) * _UNITS[size[-3:]]
