"""Who holds which block: the prefix index's tables, and what is done to them, compiled by numba.

A table has a row for each block. Its first number is the block's name; a row is found from there: at the place that the
name's lowest bits say, or at the next ones if others have taken that (linear probing; rows are taken out so that no gap
is left: Knuth, The Art of Computer Programming 3, 6.4, algorithm R). Half of the rows at most are taken. Names are
hashes, so their bits need no more mixing. What a decision looks up no cache of the processor has at hand: here it lies
side by side, where a dict has it in four places.

``holders``, one table, has the workers that hold a block: 64 to a number, a bit for each. ``own`` is a worker's table:
when a block was stored, or last used as the end of what a prompt found (NaN: the worker has not reported it), and until
when it is expected to report it (NaN: it has).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tandem.kv.hashes import Hashes
from tandem.routing.compiled import compiled

Rows = NDArray[np.uint64]
"""Of a table; shape [rows, numbers of one]."""

FEWEST_ROWS = 64
_FREE = np.uint64(0)
"""Instead of a name: nobody has taken the row."""
_ZERO = np.uint64(0x9E3779B97F4A7C15)
"""Instead of the name 0."""
_ONE = np.uint64(1)
_WORD = 64
"""Workers in one number."""
_FEW = 6
"""So many that hold most of a prompt take turns in lending it."""
_USED, _UNTIL = 1, 2
_OWN_WIDTH = 3


class BlockTable:
    """Rows, and how many are taken. Whoever puts rows in makes room first, and counts them."""

    def __init__(self, width: int = _OWN_WIDTH) -> None:
        self.rows: Rows = np.zeros((FEWEST_ROWS, width), np.uint64)
        self.taken = 0

    def make_room(self, more: int) -> None:
        """So many rows can be put in now."""
        if 2 * (self.taken + more) > len(self.rows):
            self._grow(1 << (2 * (self.taken + more)).bit_length(), self.rows.shape[1])

    def make_room_for_worker(self, place: int) -> None:
        """Of a table of holders: there is a bit for this worker."""
        width = 2 + place // _WORD
        if width > self.rows.shape[1]:
            self._grow(len(self.rows), width)

    def _grow(self, rows: int, width: int) -> None:
        larger = np.zeros((rows, width), np.uint64)
        _move(self.rows, larger)
        self.rows = larger


# ------------------------------------------------------------------ rows


@compiled("u8(u8)")
def _name(given: np.uint64) -> np.uint64:
    return _ZERO if given == _FREE else given


@compiled("i8(u8[:,::1], u8)")
def _find(rows: Rows, name: np.uint64) -> int:
    """The row of ``name``, or the free one where it would go."""
    last = rows.shape[0] - 1
    row = np.int64(name & np.uint64(last))
    while rows[row, 0] != _FREE and rows[row, 0] != name:
        row = (row + 1) & last
    return row  # type: ignore[return-value]  # which is one to numba


@compiled("void(u8[:,::1], i8, u8[:,::1], i8)")
def _copy(rows: Rows, row: int, into: Rows, place: int) -> None:
    for number in range(rows.shape[1]):
        into[place, number] = rows[row, number]


@compiled("void(u8[:,::1], i8)")
def _take_out(rows: Rows, gap: int) -> None:
    """Free a row, and close the gap: whoever was put further on because it was taken moves up."""
    last = rows.shape[0] - 1
    row = gap
    while True:
        row = (row + 1) & last
        if rows[row, 0] == _FREE:
            break
        first = np.int64(rows[row, 0] & np.uint64(last))
        if (row - first) & last >= (row - gap) & last:
            _copy(rows, row, rows, gap)
            gap = row
    for number in range(rows.shape[1]):
        rows[gap, number] = _FREE


@compiled("void(u8[:,::1], u8[:,::1])")
def _move(rows: Rows, larger: Rows) -> None:
    for row in range(rows.shape[0]):
        if rows[row, 0] != _FREE:
            _copy(rows, row, larger, _find(larger, rows[row, 0]))


@compiled("i8(u8[:,::1], u8, i8)")
def _hold(holders: Rows, name: np.uint64, place: int) -> int:
    """One more worker holds a block; 1 if nobody did before."""
    row = _find(holders, name)
    is_new = holders[row, 0] == _FREE
    holders[row, 0] = name
    holders[row, 1 + place // _WORD] |= _ONE << np.uint64(place % _WORD)
    return 1 if is_new else 0


@compiled("i8(u8[:,::1], u8, i8)")
def _let_go(holders: Rows, name: np.uint64, place: int) -> int:
    """A worker holds a block no more; 1 if nobody does now."""
    row = _find(holders, name)
    if holders[row, 0] == _FREE:
        return 0
    holders[row, 1 + place // _WORD] &= ~(_ONE << np.uint64(place % _WORD))
    for word in range(1, holders.shape[1]):
        if holders[row, word]:
            return 0
    _take_out(holders, row)
    return 1


@compiled("b1(u8[:,::1], i8, u8[::1])")
def _has_all(holders: Rows, row: int, workers: Rows) -> bool:
    """Whether all these hold a block."""
    lacking = _FREE
    for word in range(1, holders.shape[1]):
        lacking |= workers[word] & ~holders[row, word]
    return lacking == _FREE  # type: ignore[no-any-return]


@compiled("void(f8[::1], i8, u8, i8)")
def _write(counts: NDArray[np.float64], place: int, workers: np.uint64, count: int) -> None:
    """Write a count for each worker that has a bit, the first one's at ``place``."""
    while workers:
        if workers & _ONE:
            counts[place] = count
        workers >>= _ONE
        place += 1


# ------------------------------------------------------------------ what workers say


@compiled("UniTuple(i8, 2)(u8[:,::1], u8[:,::1], u8[::1], i8, f8)")
def store(holders: Rows, own: Rows, hashes: Hashes, place: int, now: float) -> tuple[int, int]:
    """A worker has these blocks. Returns how many rows are new in ``holders``, and in ``own``."""
    times = own.view(np.float64)
    new_blocks = new_rows = 0
    for given in hashes:
        name = _name(given)
        row = _find(own, name)
        if own[row, 0] == _FREE:
            own[row, 0] = name
            new_rows += 1
            new_blocks += _hold(holders, name, place)
        times[row, _USED], times[row, _UNTIL] = now, np.nan
    return new_blocks, new_rows


@compiled("Tuple((f8, i8, i8))(u8[:,::1], u8[:,::1], u8[::1], i8)")
def remove(holders: Rows, own: Rows, hashes: Hashes, place: int) -> tuple[float, int, int]:
    """A worker has these blocks no more. Returns when the one of them that was used last was used, -inf if it had none;
    and how many rows have gone from ``holders``, and from ``own``."""
    times = own.view(np.float64)
    used, gone_blocks, gone_rows = -np.inf, 0, 0
    for given in hashes:
        name = _name(given)
        row = _find(own, name)
        if own[row, 0] != _FREE:
            if times[row, _USED] > used:
                used = times[row, _USED]
            _take_out(own, row)
            gone_rows += 1
            gone_blocks += _let_go(holders, name, place)
    return used, gone_blocks, gone_rows


@compiled("i8(u8[:,::1], u8[:,::1], i8)")
def forget(holders: Rows, own: Rows, place: int) -> int:
    """A worker holds nothing of what ``own`` says, which stays as it is. Returns how many rows have gone from
    ``holders``."""
    gone_blocks = 0
    for row in range(own.shape[0]):
        if own[row, 0] != _FREE:
            gone_blocks += _let_go(holders, own[row, 0], place)
    return gone_blocks


@compiled("UniTuple(i8, 2)(u8[:,::1], u8[:,::1], u8[:,::1], i8)")
def carry_over(holders: Rows, before: Rows, own: Rows, place: int) -> tuple[int, int]:
    """After a snapshot, which does not say how old its blocks are, and may be older than what is expected: both are
    taken from the table of before. Returns how many rows are new in ``holders``, and in ``own``."""
    times, times_before = own.view(np.float64), before.view(np.float64)
    new_blocks = new_rows = 0
    for old in range(before.shape[0]):
        name = before[old, 0]
        if name == _FREE:
            continue
        row = _find(own, name)
        if own[row, 0] == name:
            if not np.isnan(times_before[old, _USED]):
                times[row, _USED] = times_before[old, _USED]
        elif not np.isnan(times_before[old, _UNTIL]):
            own[row, 0] = name
            times[row, _USED], times[row, _UNTIL] = np.nan, times_before[old, _UNTIL]
            new_rows += 1
            new_blocks += _hold(holders, name, place)
    return new_blocks, new_rows


# ------------------------------------------------------------------ what this router has brought about


@compiled("Tuple((f8, i8, i8))(u8[:,::1], u8[:,::1], u8[::1], i8, i8, f8, f8)")
def expect(
    holders: Rows, own: Rows, hashes: Hashes, held: int, place: int, now: float, until: float
) -> tuple[float, int, int]:
    """A worker that holds the first ``held`` of these blocks is given all; the others count as held ``until`` then.
    Returns how long ago the last one that is held was used, 0 if the worker has not reported it; and how many rows are
    new in ``holders``, and in ``own``."""
    times = own.view(np.float64)
    age_s, new_blocks, new_rows = 0.0, 0, 0
    if held:
        name = _name(hashes[held - 1])
        row = _find(own, name)
        if own[row, 0] != _FREE and not np.isnan(times[row, _USED]):
            age_s = now - times[row, _USED]
            times[row, _USED] = now
    for n in range(held, hashes.shape[0]):
        name = _name(hashes[n])
        row = _find(own, name)
        if own[row, 0] == _FREE:
            own[row, 0] = name
            times[row, _USED] = np.nan
            new_rows += 1
            new_blocks += _hold(holders, name, place)
        if np.isnan(times[row, _USED]):
            times[row, _UNTIL] = until
    return age_s, new_blocks, new_rows


@compiled("UniTuple(i8, 2)(u8[:,::1], u8[:,::1], u8[::1], i8, f8)")
def stop_expecting(holders: Rows, own: Rows, hashes: Hashes, place: int, now: float) -> tuple[int, int]:
    """Of these blocks, a worker does not hold those that it should have reported by ``now``. Returns how many rows have
    gone from ``holders``, and from ``own``."""
    times = own.view(np.float64)
    gone_blocks = gone_rows = 0
    for given in hashes:
        name = _name(given)
        row = _find(own, name)
        if own[row, 0] != _FREE and times[row, _UNTIL] <= now:
            _take_out(own, row)
            gone_rows += 1
            gone_blocks += _let_go(holders, name, place)
    return gone_blocks, gone_rows


# ------------------------------------------------------------------ the questions


@compiled("i8(u8[:,::1], u8[::1], f8[::1])")
def count_held(holders: Rows, hashes: Hashes, counts: NDArray[np.float64]) -> int:
    """Write to ``counts``, of zeros, how many blocks of a chain each worker holds; returns the most.

    Where some of those who hold it no more is found by halving, in a few looks however long the chain and however many
    the workers.
    """
    length, words = hashes.shape[0], holders.shape[1]
    if not length:
        return 0
    left = np.empty(words, np.uint64)
    row = _find(holders, _name(hashes[0]))
    any_left = _FREE
    for word in range(1, words):
        left[word] = holders[row, word]
        any_left |= left[word]
    most = 0
    while any_left:
        # All who are left hold the block at ``most``, and those before it.
        start, end = most + 1, length
        while start < end:
            middle = (start + end) // 2
            if _has_all(holders, _find(holders, _name(hashes[middle])), left):
                start = middle + 1
            else:
                end = middle
        most = end
        row = _find(holders, _name(hashes[most])) if most < length else -1
        any_left = _FREE
        for word in range(1, words):
            stay = left[word] & holders[row, word] if row >= 0 else _FREE
            _write(counts, _WORD * (word - 1), left[word] ^ stay, most)
            left[word] = stay
            any_left |= stay
    return most


@compiled("i8(f8[::1], i8, i8)")
def find_holder(counts: NDArray[np.float64], most: int, turn: int) -> int:
    """One of the first few workers that hold ``most``, of which there must be one; another one with the next turn."""
    few = np.empty(_FEW, np.int64)
    found = 0
    for place in range(counts.shape[0]):
        if counts[place] == most and found < _FEW:
            few[found] = place
            found += 1
    return few[turn % found]  # type: ignore[no-any-return]


@compiled("i8(u8[:,::1], u8[::1], i8)")
def count_reported(own: Rows, hashes: Hashes, held: int) -> int:
    """Of the first ``held`` blocks that a worker is believed to hold, how many it has reported: the others are yet to
    be computed there."""
    times = own.view(np.float64)
    while held and np.isnan(times[_find(own, _name(hashes[held - 1])), _USED]):
        held -= 1
    return held
