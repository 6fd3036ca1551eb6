"""Requests with the times at which they arrive, from a trace of real traffic.

A line of a trace says how long prompt and answer were, and names each block of the prompt: equal names mean an equal
beginning up to there. The words themselves are not told; tokens are made up, alike where the trace says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from tandem.errors import TandemError
from tandem.kv.hashes import Hashes, hash_chain
from tandem.messages import DEFAULT_PRIORITY

TRACE_BLOCK = 512
"""Tokens of a block of a trace (Mooncake's)."""
VOCAB_SIZE = 128_256
"""Llama 3's; nothing depends on it."""


class TraceLine(msgspec.Struct, frozen=True):
    """As in Mooncake's files."""

    timestamp: float
    """Milliseconds."""
    input_length: int
    output_length: int
    hash_ids: list[int]
    """One for each block of the prompt; the last may be cut."""


@dataclass(frozen=True)
class Arrival:
    """A request before anybody has seen it."""

    at: float
    """Seconds from the beginning."""
    request_id: str
    num_tokens: int
    """Of the prompt."""
    output_tokens: int
    blocks: tuple[int, ...]
    """Names of the prompt's blocks."""
    priority: int = DEFAULT_PRIORITY
    tenant: str = ""

    @cached_property
    def hashes(self) -> Hashes:
        """Names of the prompt's whole blocks, as workers and routers name them where a block is one of the trace's."""
        return hash_chain(self.prompt(), TRACE_BLOCK, self.tenant)

    def prompt(self) -> list[int]:
        """The prompt's token ids."""
        tokens: list[int] = []
        for name in self.blocks:
            low, high = name % VOCAB_SIZE, name // VOCAB_SIZE
            tokens += [low, high] + [low] * (TRACE_BLOCK - 2)
        return tokens[: self.num_tokens]


def read_trace(path: Path) -> list[TraceLine]:
    """All lines of a trace file, in the order of their arrival.

    Raises:
        TandemError: ``invalid_request``, naming file and line.
    """
    decoder = msgspec.json.Decoder(TraceLine)
    lines = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                lines.append(decoder.decode(line))
            except msgspec.DecodeError as error:
                raise TandemError("invalid_request", f"{path}, line {number}: {error}") from error
    return sorted(lines, key=lambda line: line.timestamp)


def arrivals(lines: list[TraceLine], *, speed: float = 1.0, copies: int = 1, repeats: int = 1) -> list[Arrival]:
    """A trace as traffic, in the order of its arrival: ``speed`` times as fast, ``copies`` of it at once, each begun at
    another place, and all of that ``repeats`` times in a row. No copy or repeat shares a prompt with another."""
    first = lines[0].timestamp
    length_s = (lines[-1].timestamp - first) / 1e3
    names = 1 + max(max(line.hash_ids, default=0) for line in lines)
    found = []
    for repeat in range(repeats):
        for copy in range(copies):
            shift, offset = copy * length_s / copies, (repeat * copies + copy) * names
            for number, line in enumerate(lines):
                at = repeat * length_s + ((line.timestamp - first) / 1e3 + shift) % (length_s + 1e-9)
                found.append(
                    Arrival(
                        at=at / speed,
                        request_id=f"{repeat}-{copy}-{number}",
                        num_tokens=line.input_length,
                        output_tokens=line.output_length,
                        blocks=tuple(offset + name for name in line.hash_ids),
                    )
                )
    return sorted(found, key=lambda arrival: arrival.at)
