"""How much more the workers can take at once: the rest had better wait where it can still be put in order."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from tandem.routing.table import Flags, Numbers, WorkerTable

AHEAD_S = 0.2
"""Of prompts that a worker has to read, at most so much is handed to it in advance: more than a message's way takes."""
AHEAD_STEPS = 2.0
"""Where its prefill steps are long, so many of them: each then has as many prompts as fit."""
HEADROOM = 0.25
"""Requests beyond the largest decode batches: those that are still in prefill or on their way."""
LEAST_HEADROOM = 2.0
SOON_S = 2.0
"""What comes free of decode's memory within so long may be meant for prompts that are still being read elsewhere: they
have their memory there. It is far less than a lease lasts, should they have to wait."""


def read_ahead_s(table: WorkerTable) -> Numbers:
    """For how long each worker could read prompts that are handed to it in advance; shape [workers]."""
    ahead: Numbers = np.maximum(AHEAD_S, AHEAD_STEPS * table.prefill_step_s)
    ahead -= table.wait_s
    return np.maximum(ahead, 0.0, out=ahead)


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What all workers together can take beyond what they have; infinite where that is not known."""

    requests: float = math.inf
    prompt_tokens: float = math.inf
    """To be read."""
    blocks: float = math.inf
    """Of KV, for prompts and what answers will take; in part what is meant for prompts still read elsewhere."""
    read_s: float | None = None
    """Per prompt token at least, all who would read reading at once; None as long as nobody has been measured."""
    alone_s: float | None = None
    """Per prompt token at least, on the fastest of them."""


def find_room(table: WorkerTable, kv_share: float) -> Room | None:
    """The room there is now; ``kv_share`` of the KV blocks count. None where nobody takes new work."""
    decoders, readers = table.bar("decode"), table.bar("prefill")
    deciders = readers if decoders is None else decoders
    readers = decoders if readers is None else readers
    if deciders is None or readers is None:
        return None
    writing, reading = deciders == 0.0, readers == 0.0
    batch = (table.in_hand[writing] + 1.0) / table.batch_share[writing]
    slots = batch + np.maximum(HEADROOM * batch, LEAST_HEADROOM) - table.in_hand[writing]
    share, block = kv_share - table.used_share[writing], table.block_share[writing]
    blocks = math.inf if (block == 0.0).any() else float((np.maximum(share, 0.0) / block).sum())
    if math.isfinite(blocks):
        blocks += min(table.coming.blocks, _free_soon(table, writing))
    room = Room(requests=float(np.maximum(slots, 0.0).sum()), blocks=blocks)
    per_token = table.prefill_s[reading]
    if not table.has_measured_prefill or (per_token <= 0.0).any():
        return room
    least = table.prefill_more_s[reading]  # nobody is refused for what short prompts of before have taken
    return msgspec.structs.replace(
        room,
        prompt_tokens=float((read_ahead_s(table)[reading] / per_token).sum()),
        read_s=float(1.0 / (1.0 / least).sum()),
        alone_s=float(least.min()),
    )


def _free_soon(table: WorkerTable, writing: Flags) -> float:
    """KV blocks that come free within ``SOON_S`` where memory is full, since answers end."""
    answer_s = np.maximum(table.answers.tokens * table.step_s[writing], SOON_S)
    return float((SOON_S / (answer_s * table.block_share[writing])).sum())
