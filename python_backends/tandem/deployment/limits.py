"""``[limits]``: what is refused, and how long anything may take."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tandem.deployment.base import Count, PositiveFloat, PositiveInt, Section, Share


class Limits(Section, frozen=True, kw_only=True):
    """What is refused, and how long anything may take."""

    max_requests: PositiveInt | None = None
    """Requests that one orchestrator has in workers at a time. When left out: see ``tandem.routing.room``."""
    max_tokens_in_flight: PositiveInt | None = None
    """Likewise tokens, of prompts and longest answers."""
    kv_share: PositiveFloat = 1.0
    """Of decode workers' KV blocks, what requests may need with answers like those of late; above 1 bets on shorter."""
    max_queue_s: PositiveFloat = 30.0
    """Most time that a request waits before any work; one that is expected to wait longer is refused at once."""
    max_waiting: PositiveInt = 2048
    """Requests that wait in one orchestrator."""
    default_max_tokens: PositiveInt = 256
    request_timeout_s: PositiveFloat = 300.0
    """Deadline of a request that names none."""
    retry_after_s: PositiveFloat = 1.0
    drain_s: PositiveFloat = 30.0
    """For the requests of a worker whose server is asked to stop."""
    max_inter_token_ms: PositiveFloat = 200.0
    """Most time between two tokens of an answer that may be due to other prompts: they are read in chunks."""
    max_migrations: Count = 3
    """How often a request goes on elsewhere when a worker or a hand-over fails; 0: never."""
    prefill_timeout_s: PositiveFloat = 120.0
    """From the hand-over of a prompt to its first token, the wait in the worker's queue included."""
    decode_timeout_s: PositiveFloat = 120.0
    """Between two tokens of an answer."""
    hedge_share: Share = 0.05
    """Of the requests, those whose late prefill may be started a second time elsewhere; 0: none."""
    hedge_factor: Annotated[float, Meta(ge=1)] = 3.0
    """A prefill is late when it takes so many times what the router expected, and longer than 95 % of the others."""
    hedge_after_s: PositiveFloat = 1.0
    """None is late before."""
