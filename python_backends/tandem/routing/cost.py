"""What it would cost to give a request to each worker, in seconds: added up over the request and those it holds up.

Every function weighs all workers at once; columns have shape [workers].
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from tandem.routing.table import Numbers, WorkerTable

Task = Literal["prefill", "decode", "generate"]
"""What a worker is chosen for; as the messages of these names."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a router needs to know of a request."""

    num_tokens: int
    """Of the prompt."""
    max_tokens: int
    """Of the answer, at most."""
    prompt_blocks: int
    """KV blocks that the prompt takes."""
    all_blocks: int
    """KV blocks that prompt and answer take."""
    uncached: Numbers
    """Tokens of the prompt that each worker would have to read; shape [workers]."""


class Cost(msgspec.Struct, frozen=True):
    """What a request would cost on each worker, and of what that is made up."""

    total: Numbers
    parts: dict[str, Numbers]
    unit: Literal["seconds", "requests"] = "seconds"


def prefill_cost(table: WorkerTable, request: Request) -> Cost:
    """Until the first token: the prompts before it, its own uncached tokens, and room for its blocks."""
    wait = table.wait_s.copy()
    work = table.prefill_s * request.uncached
    total = wait + work
    lack = table.used_share + (request.prompt_blocks * table.block_share - 1.0)
    if np.maximum.reduce(lack) <= 0.0:
        return Cost(total, {"wait": wait, "prefill": work})
    # Blocks come free as the queue moves on: a full turn of it for all of them.
    turn = wait + table.prefill_s * request.num_tokens
    room = turn * np.maximum(lack, 0.0)
    return Cost(total + room, {"wait": wait, "prefill": work, "room": room})


def decode_cost(table: WorkerTable, request: Request) -> Cost:
    """Of the answer: its steps, what it adds to those of others, and the wait for room in batch and KV memory."""
    steps = table.step_s * request.max_tokens
    share = np.maximum(table.batch_share, table.used_share + request.all_blocks * table.block_share)
    crowding = steps * share
    total = steps + crowding
    if np.maximum.reduce(share) <= 1.0:
        return Cost(total, {"steps": steps, "crowding": crowding})
    # Room comes free as running answers end: a full turn of them for all of it.
    room = steps * np.maximum(share - 1.0, 0.0)
    return Cost(total + room, {"steps": steps, "crowding": crowding, "room": room})


def generate_cost(table: WorkerTable, request: Request, decode: Cost) -> Cost:
    """Of both stages on one worker, with what its decode stage costs. While a worker reads the prompt its answers stand
    still, each for as long; that counts for one at least, since one may begin at any moment."""
    wait = table.wait_s.copy()
    work = table.prefill_s * request.uncached
    stall = work * np.maximum(table.in_hand, 1.0)
    total = decode.total + wait + work + stall
    return Cost(total, {"wait": wait, "prefill": work, "stall": stall} | decode.parts)


class Costs:
    """All costs of one request at one moment, each worked out when it is first asked for."""

    def __init__(self, table: WorkerTable, request: Request) -> None:
        self.request = request
        self._table = table
        self._known: dict[Task, Cost] = {}

    def of(self, task: Task) -> Cost:
        """The seconds of a task on every worker."""
        cost = self._known.get(task)
        if cost is None:
            if task == "prefill":
                cost = prefill_cost(self._table, self.request)
            elif task == "decode":
                cost = decode_cost(self._table, self.request)
            else:
                cost = generate_cost(self._table, self.request, self.of("decode"))
            self._known[task] = cost
        return cost
