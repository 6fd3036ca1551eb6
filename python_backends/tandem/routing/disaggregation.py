"""Whether a request is taken apart over two workers or done whole on one: decided on what either way would take."""

from __future__ import annotations

from typing import Literal

import msgspec

Way = Literal["split", "whole"]
Task = Literal["prefill", "decode", "generate"]
"""What a worker is chosen for; as the messages of these names."""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """Who waits for prefill workers to have room, as the router is told."""

    others: int = 0
    own_s: float = 0.0
    """How long the request itself would have to, if it went to one."""


NOBODY_WAITS = Waiting()


class Split(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Prefill on one worker, decode on another; in seconds."""

    gate_s: float = 0.0
    """Wait for its turn to go to a prefill worker; 0 where it has come."""
    prefill_s: float
    """Wait, uncached tokens and room on the prefill worker."""
    held_up_s: float
    """What those who wait until prefill workers have room lose meanwhile, added up."""
    transfer_s: float
    """KV of the whole prompt, from one to the other."""
    decode_s: float
    """Steps, crowding and room on the decode worker."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.gate_s + self.prefill_s + self.held_up_s + self.transfer_s + self.decode_s


class Whole(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Both stages on one worker; in seconds."""

    prefill_s: float
    """Wait and uncached tokens on that worker."""
    stall_s: float
    """What its running answers lose meanwhile, added up; where it passes the gate, also who waits for their memory."""
    decode_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.prefill_s + self.stall_s + self.decode_s


LEAST_LEFT = 0.1
"""Of a worker's KV memory: what is foretold to be taken may be more than there is."""


def crowding(used_share: float) -> float:
    """How many times as many are held up where answers stand still, since they keep their KV memory all the while.

    As if four requests filled a worker: with the chance ``used_share ** 4`` it is full and another one waits, with the
    same chance one more waits behind that, and so on. Without it, decode workers that read what passes the gate would
    fill up, and prefill workers wait for them.
    """
    return 1.0 / max(1.0 - used_share**4, LEAST_LEFT)


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Which way, and what was weighed; None stands for a way that is not open."""

    way: Way
    split: Split | None
    whole: Whole | None

    @property
    def reason(self) -> str:
        """Why, in a few words."""
        if self.split is None:
            return "no pair of workers is ready"
        if self.whole is None:
            return "one worker for both stages was not weighed"
        return f"{1e3 * self.split.total_s:.1f} ms on two workers, {1e3 * self.whole.total_s:.1f} ms on one"


def choose_way(split: Split | None, whole: Whole | None) -> Verdict:
    """The way that takes less in all, or the only one that is open. Equal ways are taken apart.

    Raises:
        ValueError: neither way is open.
    """
    if split is None and whole is None:
        raise ValueError("split and whole are both None: there is no worker to choose")
    better = split is None or (whole is not None and whole.total_s < split.total_s)
    return Verdict("whole" if better else "split", split, whole)
