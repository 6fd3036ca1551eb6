"""What it would cost to give a request to each worker, in seconds: added up over the request and those it holds up.

The formulas are in ``weighing``. Structs of a decision refer to nothing that refers back, so the garbage collector need
not look at them (``gc=False``).
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from tandem.routing import weighing
from tandem.routing.disaggregation import Task
from tandem.routing.table import Numbers, WorkerTable

_TOTALS: dict[Task, int] = {
    "prefill": weighing.PREFILL_TOTAL,
    "decode": weighing.DECODE_TOTAL,
    "generate": weighing.GENERATE_TOTAL,
}
_DECODE_PARTS = {"steps": weighing.STEPS, "crowding": weighing.CROWDING, "room": weighing.DECODE_ROOM}
_PARTS: dict[Task, dict[str, int]] = {
    "prefill": {
        "wait": weighing.WAIT,
        "prefill": weighing.READ,
        "held up": weighing.HELD_UP,
        "lost blocks": weighing.LOST_BLOCKS,
        "room": weighing.PREFILL_ROOM,
    },
    "decode": _DECODE_PARTS,
    "generate": {
        "wait": weighing.WAIT,
        "prefill": weighing.READ_WHOLE,
        "stall": weighing.STALL,
        **_DECODE_PARTS,
    },
}


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a router needs to know of a request."""

    num_tokens: int
    """Of the prompt."""
    answer_tokens: int
    """Of the answer, as others of late lead to expect."""
    prompt_blocks: int
    """KV blocks that the prompt takes."""
    all_blocks: int
    """KV blocks that prompt and answer will take."""
    block_size: int
    """Tokens."""
    held: Numbers
    """Blocks of the prompt that each worker holds, from its start on; shape [workers]."""
    lent_tokens: int = 0
    """Of the prompt: those whose KV a prefill worker can get from the one that holds most of it."""
    lent_share: float = 1.0
    """Of the time that a token takes to be read, what its KV takes to come from elsewhere; 1: no less."""
    chances: Numbers
    """How likely what each worker's cache gives up for them would be asked for again; shape [workers]."""


class Cost(msgspec.Struct, frozen=True, gc=False):
    """What a request would cost on each worker, and of what that is made up."""

    total: Numbers
    task: Task | None = None
    weighed: Numbers | None = None
    """All that was weighed for the request, [rows, workers]; None where only the total is known."""
    unit: Literal["seconds", "requests"] = "seconds"

    @property
    def parts(self) -> dict[str, Numbers]:
        """What adds up to the total, by name; the wait for room only where any worker has none."""
        if self.task is None or self.weighed is None:
            return {}
        rows = {name: self.weighed[row] for name, row in _PARTS[self.task].items()}
        return {name: row for name, row in rows.items() if name != "room" or row.any()}


class Costs(msgspec.Struct, frozen=True, gc=False):
    """All costs of one request at one moment."""

    request: Request
    weighed: Numbers
    """All of them and what they are made of, by the rows of ``weighing``; shape [rows, workers]."""

    @property
    def uncached(self) -> Numbers:
        """Tokens of the prompt that each worker does not hold; shape [workers]."""
        row: Numbers = self.weighed[weighing.UNCACHED]
        return row

    @property
    def to_read(self) -> Numbers:
        """Tokens that each prefill worker would take as long to read as it takes to get the prompt's KV, in part from
        the one that holds most of it, where it can; shape [workers]."""
        row: Numbers = self.weighed[weighing.TO_READ]
        return row

    def of(self, task: Task) -> Cost:
        """The seconds of a task on every worker."""
        return Cost(self.weighed[_TOTALS[task]], task, self.weighed)


def weigh(table: WorkerTable, request: Request) -> Costs:
    """What a request costs now."""
    readers = table.bar("prefill")
    weighed = weighing.weigh(
        table.columns,
        np.full(len(request.held), np.inf) if readers is None else readers,
        request.held,
        request.chances,
        request.block_size,
        request.num_tokens,
        request.lent_tokens,
        request.lent_share,
        request.prompt_blocks,
        request.all_blocks,
        request.answer_tokens,
    )
    return Costs(request, weighed)
