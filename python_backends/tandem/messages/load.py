"""What a worker has to do and hold."""

from __future__ import annotations

from tandem.messages.base import Message


class TierLoad(Message, frozen=True, kw_only=True):
    """The prefix cache below the fast memory (``tandem.kv.tiers``); counters, in blocks, run since the start."""

    block_bytes: int
    """In the fast memory."""
    host_blocks: int = 0
    host_bytes: int = 0
    disk_blocks: int = 0
    disk_bytes: int = 0
    """Headers included."""
    hits: int = 0
    """Read back."""
    misses: int = 0
    """Of prompts that were looked up: neither in the fast memory nor read back, so computed."""
    corrupt: int = 0
    """Read, but not what they should be."""
    dropped: int = 0
    """Had to leave the fast memory before they were copied."""
    errors: int = 0
    """Times that the disk could not be written to or read from."""


class Load(Message, frozen=True, kw_only=True):
    """What a worker has to do and hold, at one moment; counters run since its start."""

    queued: int = 0
    running: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    """Held for requests and handles."""
    blocks_wanted: int = 0
    """What those requests may come to take beyond these, with their longest answers."""
    blocks_cached: int = 0
    """Held by nobody, and kept for reuse until there is need of room."""
    preemptions: int = 0
    """Times that a request's KV gave way to that of others, to be computed anew."""
    handles_held: int = 0
    handles_granted: int = 0
    handles_expired: int = 0
    bytes_pulled: int = 0
    pull_seconds: float = 0.0
    pulls: int = 0
    """Handles redeemed, and prefixes borrowed."""
    tokens_borrowed: int = 0
    """Prompt tokens whose KV another worker has lent."""
    borrows_failed: int = 0
    """Prefixes that were to be borrowed and had to be computed."""
    steps: int = 0
    """Engine steps that made progress: a worker that has work and whose steps stand still is hung."""
    step_seconds: float = 0.0
    prefill_steps: int = 0
    """Of the steps, those that read prompts; the others are decode steps."""
    prefill_tokens: int = 0
    """Prompt tokens read, those of cached blocks not among them."""
    prefill_seconds: float = 0.0
    """Of the steps' time, what the prefill steps took."""
    queued_tokens: int = 0
    """Prompt tokens that are still to be read, cached ones not among them, of all requests in hand."""
    collective_seconds: float = 0.0
    """Of the steps' time, what the leader spent in exchange with other ranks, waiting for them included."""
    silent_s: float = 0.0
    """For how long the engine process has said nothing. Filled in by the stage."""
    tier: TierLoad | None = None
    """None: blocks that leave the fast memory are gone."""
