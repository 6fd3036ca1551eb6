"""The arithmetic of a decision, over all workers at once, compiled by numba.

Columns are so short that as operations of numpy each costs far more to call than to carry out, and there are fifty in a
decision. The first time on a machine the import compiles for some seconds; numba keeps the result on disk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tandem.routing.compiled import compiled
from tandem.routing.table import COLUMNS, Numbers

_WAIT, _PREFILL, _STEP, _IN_HAND, _STALLED, _BATCH_SHARE, _USED_SHARE, _BLOCK_SHARE = (
    COLUMNS.index(name)
    for name in ("wait_s", "prefill_s", "step_s", "in_hand", "stalled", "batch_share", "used_share", "block_share")
)

_ROWS = 15
(
    UNCACHED,
    TO_READ,
    PREFILL_TOTAL,
    WAIT,
    READ,
    HELD_UP,
    LOST_BLOCKS,
    PREFILL_ROOM,
    DECODE_TOTAL,
    STEPS,
    CROWDING,
    DECODE_ROOM,
    GENERATE_TOTAL,
    READ_WHOLE,
    STALL,
) = range(_ROWS)
"""Rows of what ``weigh`` returns: tokens that are not held, and that it takes as long as reading so many to have; then
seconds, of each task the total, and what is added up to it."""

_APART = 8
"""Numbers between rows: were they a power of two apart, all would share a few lines of the processor's cache."""


@compiled("f8(f8[:,::1], f8[::1])")
def _find_busy(columns: Numbers, readers: Numbers) -> float:
    """Of prefill workers that take new work, the share of those that have some in hand; 0 if there are none."""
    count = busy = 0
    for w in range(columns.shape[1]):
        if readers[w] == 0.0:
            count += 1
            if columns[_IN_HAND, w] > 0.0:
                busy += 1
    return busy / count if count else 0.0


@compiled("f8[:,:](f8[:,::1], f8[::1], f8[::1], f8[::1], f8, f8, f8, f8, f8, f8, f8)")
def weigh(
    columns: Numbers,
    readers: Numbers,
    held: Numbers,
    chances: Numbers,
    block_size: float,
    num_tokens: float,
    lent_tokens: float,
    lent_share: float,
    prompt_blocks: float,
    all_blocks: float,
    answer_tokens: float,
) -> Numbers:
    """What a request costs on each worker; shape [rows, workers].

    Prefill, until the first token: the prompts before it, its own tokens that have to be read, and room for its blocks.
    What it reads holds up those who come after it, the likelier the more prefill workers have work in hand; and each
    block of it takes the place of another one, which has to be read again if it is asked for.

    Decode, of the answer: its steps, what it adds to those of others, and the wait for room in batch and KV memory.

    Generate, of both stages on one worker: while it reads the prompt its answers stand still, each for as long; that
    counts for one at least, since one may begin at any moment.

    Args:
        columns: of the ``WorkerTable``, [columns, workers].
        readers: 0 for the prefill workers that take new work, infinite for all others; [workers].
        held: blocks of the prompt that a worker holds, [workers].
        chances: how likely what its cache gives up would be asked for again, [workers].
        lent_tokens: of the prompt, what a prefill worker can borrow.
        lent_share: of the time that a token takes to be read, what its KV takes to come from elsewhere.
    """
    costs = np.empty((_ROWS, columns.shape[1] + _APART))[:, : columns.shape[1]]
    busy = _find_busy(columns, readers)
    rest = (1.0 - lent_share) * (num_tokens - lent_tokens)
    for w in range(columns.shape[1]):
        # The last token is always read, whatever is held: it gives the first one of the answer.
        uncached = max(1.0, num_tokens - held[w] * block_size)
        to_read = min(uncached, lent_share * uncached + rest)
        costs[UNCACHED, w], costs[TO_READ, w] = uncached, to_read
        wait, token_s = columns[_WAIT, w], columns[_PREFILL, w]
        used, block = columns[_USED_SHARE, w], columns[_BLOCK_SHARE, w]

        read = token_s * to_read
        held_up = read * busy
        # Blocks come free as the queue moves on: a full turn of it for all of them.
        room = (wait + token_s * num_tokens) * max(used + block * prompt_blocks - 1.0, 0.0)
        costs[WAIT, w], costs[READ, w], costs[HELD_UP, w], costs[PREFILL_ROOM, w] = wait, read, held_up, room
        costs[LOST_BLOCKS, w] = (read + held_up) * chances[w]
        costs[PREFILL_TOTAL, w] = (read * chances[w] + read) * (1.0 + busy) + wait + room

        steps = columns[_STEP, w] * answer_tokens
        share = max(block * all_blocks + used, columns[_BATCH_SHARE, w])
        # Room comes free as running answers end: a full turn of them for all of it.
        room = steps * max(share - 1.0, 0.0)
        decode = steps * share + steps + room
        costs[STEPS, w], costs[CROWDING, w], costs[DECODE_ROOM, w] = steps, steps * share, room
        costs[DECODE_TOTAL, w] = decode

        read = token_s * uncached
        stall = read * columns[_STALLED, w]
        costs[READ_WHOLE, w], costs[STALL, w] = read, stall
        costs[GENERATE_TOTAL, w] = decode + wait + read + stall
    return costs


@compiled("UniTuple(i8, 2)(f8[::1], f8[::1], f8[::1], f8, i8[::1])")
def find_near(
    total: Numbers, bar: Numbers, lacking: Numbers, factor: float, near: NDArray[np.int64]
) -> tuple[int, int]:
    """The place of the least ``total`` where the ``bar`` is 0, and how many cost at most ``factor`` times as much and
    lack no more than it; their places are written to ``near``. All of shape [workers]."""
    best = -1
    for w in range(total.shape[0]):
        if bar[w] == 0.0 and (best < 0 or total[w] < total[best]):
            best = w
    count = 0
    for w in range(total.shape[0]):
        if bar[w] == 0.0 and total[w] <= factor * total[best] and lacking[w] <= lacking[best]:
            near[count] = w
            count += 1
    return best, count
