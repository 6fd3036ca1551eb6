"""What it would cost to give a request to each worker, in seconds: added up over the request and those it holds up.

Every function weighs all workers at once; columns have shape [workers]. So short are they that the number of operations
is what takes time: numbers among them are floats, the greatest is found by ``argmax``, sums are made in place, and what
a cost is made of is worked out only when somebody asks. Structs of a decision refer to nothing that refers back, so the
garbage collector need not look at them (``gc=False``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np

from tandem.routing.table import Numbers, WorkerTable

Task = Literal["prefill", "decode", "generate"]
"""What a worker is chosen for; as the messages of these names."""


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
    uncached: Numbers
    """Tokens of the prompt that each worker does not hold; shape [workers]."""
    to_read: Numbers
    """Tokens that each prefill worker would take as long to read as it takes to get the prompt's KV, in part from the
    one that holds most of it, where it can; shape [workers]."""
    chances: Numbers
    """How likely what each worker's cache gives up for them would be asked for again; shape [workers]."""


class Cost(msgspec.Struct, frozen=True, gc=False):
    """What a request would cost on each worker, and of what that is made up."""

    total: Numbers
    find_parts: Callable[[], dict[str, Numbers]] = dict
    """Works out ``parts``, of what was known when the cost was."""
    unit: Literal["seconds", "requests"] = "seconds"

    @property
    def parts(self) -> dict[str, Numbers]:
        """What adds up to the total, by name."""
        return self.find_parts()


def prefill_cost(table: WorkerTable, request: Request, wait: Numbers, work: Numbers) -> Cost:
    """Until the first token: the prompts before it, its own uncached tokens, and room for its blocks. What it reads
    holds up those who come after it, the likelier the more workers are busy; and each block of it takes the place of
    another one, which has to be read again if it is asked for."""
    busy, chances, room = table.busy_share("prefill"), request.chances, None
    total = work * chances
    total += work
    total *= 1.0 + busy
    total += wait
    if not table.all_have_room(request.prompt_blocks):
        # Blocks come free as the queue moves on: a full turn of it for all of them.
        taken = table.used_share + table.block_share * float(request.prompt_blocks)
        turn = wait + table.prefill_s * float(request.num_tokens)
        room = turn * np.maximum(taken - 1.0, 0.0)
        total += room

    def find_parts() -> dict[str, Numbers]:
        held_up = work * busy
        parts = {"wait": wait, "prefill": work, "held up": held_up, "lost blocks": (work + held_up) * chances}
        return parts if room is None else parts | {"room": room}

    return Cost(total, find_parts)


def decode_cost(table: WorkerTable, request: Request) -> Cost:
    """Of the answer: its steps, what it adds to those of others, and the wait for room in batch and KV memory."""
    steps = table.step_s * float(request.answer_tokens)
    share = table.block_share * float(request.all_blocks)
    share += table.used_share
    np.maximum(share, table.batch_share, share)
    total = steps * share
    total += steps
    if share.item(share.argmax()) <= 1.0:
        return Cost(total, lambda: {"steps": steps, "crowding": steps * share})
    # Room comes free as running answers end: a full turn of them for all of it.
    room = steps * np.maximum(share - 1.0, 0.0)
    total += room
    return Cost(total, lambda: {"steps": steps, "crowding": steps * share, "room": room})


def generate_cost(table: WorkerTable, decode: Cost, wait: Numbers, work: Numbers) -> Cost:
    """Of both stages on one worker, with what its decode stage costs. While a worker reads the prompt its answers stand
    still, each for as long; that counts for one at least, since one may begin at any moment."""
    stall = work * table.stalled
    total = decode.total + wait
    total += work
    total += stall
    return Cost(total, lambda: {"wait": wait, "prefill": work, "stall": stall} | decode.parts)


class Costs:
    """All costs of one request at one moment, each worked out when it is first asked for."""

    def __init__(self, table: WorkerTable, request: Request) -> None:
        self.request = request
        self._table = table
        self.wait, self.work = table.wait_s.copy(), table.prefill_s * request.uncached
        """For the prompts before this one, and for this one."""
        self.split_work = self.work if request.to_read is request.uncached else table.prefill_s * request.to_read
        """The same on a prefill worker, which may borrow."""
        self._known: dict[Task, Cost] = {}

    def of(self, task: Task) -> Cost:
        """The seconds of a task on every worker."""
        cost = self._known.get(task)
        if cost is None:
            if task == "prefill":
                cost = prefill_cost(self._table, self.request, self.wait, self.split_work)
            elif task == "decode":
                cost = decode_cost(self._table, self.request)
            else:
                cost = generate_cost(self._table, self.of("decode"), self.wait, self.work)
            self._known[task] = cost
        return cost
