"""Records of requests in a file, a line of JSON each."""

from __future__ import annotations

from pathlib import Path

import msgspec

from live.record import Record


def read_records(path: Path) -> list[Record]:
    """All of them, in the order in which requests ended."""
    decoder = msgspec.json.Decoder(Record)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def to_line(record: Record) -> bytes:
    """One of them."""
    return msgspec.json.encode(record) + b"\n"
