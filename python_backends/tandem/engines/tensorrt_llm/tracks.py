"""The requests in hand."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from tandem.engines.tensorrt_llm.answer import Answer
from tandem.engines.tensorrt_llm.requests import Kind
from tandem.errors import TandemError
from tandem.messages import AnyWork, KvHandle, Prefill, WorkerInfo


@dataclass(eq=False)
class Track:
    """One request inside the engine."""

    work: AnyWork
    handle: KvHandle | None
    blocks: int
    """What it may come to need."""
    unread: int
    """Prompt tokens to be read, as far as the cache is known."""
    arrived: float = field(default_factory=time.monotonic)
    kind: Kind | None = None
    """Once the library has it."""
    output: Any = None
    """The library's ``RequestOutput``, which grows."""
    answer: Answer | None = None
    has_begun: bool = False
    """Whether something has come out of the library."""
    task: asyncio.Task[None] | None = None

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.work.request_id

    @property
    def cached_tokens(self) -> int:
        """Tokens that the library did not have to read."""
        return int(getattr(self.output, "cached_tokens", 0) or 0)

    @property
    def is_transferring(self) -> bool:
        """Whether its KV may be on its way, during which the library cannot be stopped."""
        return self.kind == "generation_only" and not self.has_begun


class Tracks:
    """All requests in hand, by id; and what of those that have left may still be in the library."""

    def __init__(self, transfer_timeout_s: float) -> None:
        self._transfer_timeout_s = transfer_timeout_s
        self._in_hand: dict[str, Track] = {}
        self._lingering: list[tuple[float, int]] = []
        """When it is over at the latest, and blocks."""

    def __len__(self) -> int:
        return len(self._in_hand)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._in_hand

    def add(self, track: Track) -> None:
        """Take a request in hand."""
        self._in_hand[track.request_id] = track

    def take(self, request_id: str) -> Track | None:
        """Let go of a request; None: it is not in hand."""
        track = self._in_hand.pop(request_id, None)
        if track is not None and track.is_transferring:
            self._lingering.append((time.monotonic() + self._transfer_timeout_s, track.blocks))
        return track

    def holds(self, track: Track) -> bool:
        """Whether this very request is in hand, and not a later one of its name."""
        return self._in_hand.get(track.request_id) is track

    @property
    def queued(self) -> int:
        """Those of which nothing has come out."""
        return sum(not t.has_begun for t in self._in_hand.values())

    @property
    def unread(self) -> int:
        """Prompt tokens that are still to be read."""
        return sum(t.unread for t in self._in_hand.values() if not t.has_begun)

    @property
    def blocks(self) -> int:
        """KV blocks that they, and transfers that nobody waits for any more, may hold."""
        now = time.monotonic()
        self._lingering = [each for each in self._lingering if each[0] > now]
        return sum(t.blocks for t in self._in_hand.values()) + sum(blocks for _, blocks in self._lingering)


def check_room(work: AnyWork, info: WorkerInfo, blocks_total: int) -> int:
    """Blocks that the library sets aside for a request before it begins. ``blocks_total``: 0 until they are known.

    Raises:
        TandemError: ``prompt_too_long``: there are not as many.
    """
    size, prompt = info.kv.block_size, len(work.token_ids)
    answer = len(work.output_ids) + 1 if isinstance(work, Prefill) else work.stopping.max_tokens
    needed = -(-(prompt + answer) // size)
    if 0 < blocks_total < needed:
        raise TandemError(
            "prompt_too_long",
            f"token_ids: {prompt} prompt tokens, with max_tokens {work.stopping.max_tokens}, need {needed} KV blocks "
            f"of {size} tokens; worker {info.worker_id!r} has {blocks_total} (worker.kv_memory)",
        )
    return needed
