"""Streams of mpiexec, cut anywhere, give each rank's lines back."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from tandem.parallel.launch import MARKERS
from tandem.parallel.output import Demultiplexer, Line

MPICH = MARKERS["mpich"]
OPENMPI = MARKERS["openmpi"]

texts = st.binary(max_size=12).map(lambda data: re.sub(rb"[\n\x1e\x1f]", b"-", data))
lines = st.lists(st.tuples(st.integers(0, 3), texts), max_size=20)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def read(marker: re.Pattern[bytes], pieces: list[bytes]) -> list[Line]:
    demultiplexer = Demultiplexer(marker)
    found = [line for piece in pieces for line in demultiplexer.feed(piece)]
    return found + demultiplexer.finish()


@given(lines, st.lists(st.integers(0, 1000), max_size=8))
def test_whole_lines_are_each_ranks_own(sent: list[tuple[int, bytes]], places: list[int]) -> None:
    data = b"".join(b"\x1e%d\x1f%s\n" % line for line in sent)
    assert read(MPICH, cut(data, places)) == sent


@given(lines, st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 6)), max_size=30))
def test_pieces_of_lines_are_put_together(sent: list[tuple[int, bytes]], order: list[tuple[int, int]]) -> None:
    """As MPICH forwards what ranks write bit by bit, in any order: a marker before each bit, lines mixed."""
    waiting = {rank: b"".join(text + b"\n" for r, text in sent if r == rank) for rank in range(4)}
    stream = b""
    for pick, size in [*order, *((rank, 10_000) for rank in range(4))]:
        rank = pick % 4
        piece, waiting[rank] = waiting[rank][:size], waiting[rank][size:]
        stream += b"".join(b"\x1e%d\x1f%s" % (rank, part) for part in piece.splitlines(keepends=True))
    got = read(MPICH, [stream])
    for rank in range(4):
        assert [text for r, text in got if r == rank] == [text for r, text in sent if r == rank]


def test_what_open_mpi_writes() -> None:
    data = (
        b"[1,0]<stdout>: one\n[1,12]<stderr>: [vm:13267] Signal: Aborted (6)\n\n"
        b"prterun noticed something\n[prterun-vm-7@1,3]<stdout>:four\n[1,2]<stdout>: no end"
    )
    assert read(OPENMPI, [data]) == [
        (0, b"one"),
        (12, b"[vm:13267] Signal: Aborted (6)"),
        (None, b""),
        (None, b"prterun noticed something"),
        (3, b"four"),
        (2, b"no end"),
    ]


def test_mpiexec_itself_has_no_marker() -> None:
    assert read(MPICH, [b"BAD TERMINATION\n", b"\x1e1\x1fx\n"]) == [(None, b"BAD TERMINATION"), (1, b"x")]
