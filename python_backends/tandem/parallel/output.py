"""The output of many ranks in one stream, as mpiexec forwards it, taken apart into lines of each rank."""

from __future__ import annotations

import re
from collections import defaultdict

Line = tuple[int | None, bytes]
"""Rank and line, without its end; None: mpiexec itself."""


class Demultiplexer:
    """Takes one stream of mpiexec. A marker names the rank of the piece behind it, which need not be a whole line."""

    def __init__(self, marker: re.Pattern[bytes]) -> None:
        """``marker``: group 1 is the rank."""
        self._marker = marker
        self._tail = b""
        self._begun: defaultdict[int | None, bytes] = defaultdict(bytes)

    def feed(self, data: bytes) -> list[Line]:
        """The lines that ``data`` completes."""
        *whole, self._tail = (self._tail + data).split(b"\n")
        return [line for raw in whole for line in self._take(raw)]

    def finish(self) -> list[Line]:
        """What was left without an end of line."""
        lines = self._take(self._tail) if self._tail else []
        lines += [(rank, text) for rank, text in self._begun.items() if text]
        self._tail = b""
        self._begun.clear()
        return lines

    def _take(self, raw: bytes) -> list[Line]:
        """One line of the stream: pieces of several ranks, of which the last one's line ends."""
        before, *rest = self._marker.split(raw)
        pieces: list[Line] = [(int(rank), piece) for rank, piece in zip(rest[::2], rest[1::2], strict=True)]
        if before or not pieces:
            pieces.insert(0, (None, before))
        for rank, piece in pieces:
            self._begun[rank] += piece
        last = pieces[-1][0]
        return [(last, self._begun.pop(last))]
