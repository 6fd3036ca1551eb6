"""Orchestrator → engine: what there is to do."""

from __future__ import annotations

from tandem.messages.base import Message
from tandem.messages.request import Sampling, Stopping

DEFAULT_PRIORITY = 5
"""Of 1, which is served first, to 9."""


class Lender(Message, frozen=True, kw_only=True):
    """Who holds the KV of a prompt's beginning, and lends it to whoever reads the prompt."""

    worker_id: str
    num_tokens: int
    """Whose KV it holds, as far as was heard."""


class Work(Message, frozen=True, kw_only=True):
    """One request as an engine sees it: prompt and the answer so far, both as token ids."""

    request_id: str
    token_ids: list[int]
    output_ids: list[int] = []
    """Answer tokens that exist already; the next token has this list's length as its index."""
    salt: str = ""
    """Of the block hashes: requests share cached blocks only where it is the same (a tenant's name)."""
    sampling: Sampling
    stopping: Stopping
    traceparent: str = ""
    """Of W3C: the span that the work belongs to; empty: none."""
    priority: int = DEFAULT_PRIORITY
    """Who has a higher number gives up KV blocks first."""
    lender: Lender | None = None
    """Whom to borrow from, where that is quicker than to compute it. Whatever comes of it, the work is done. ``Decode``
    has a handle instead."""
    keeps: bool = True
    """Whether its KV stays in the worker's prefix cache for as long as any that was used as lately; else it is the
    first to go, since another worker keeps it."""


class Prefill(Work, tag="prefill", frozen=True, kw_only=True):
    """Read the prompt, make one token, hold the KV blocks under a lease."""


class Decode(Work, tag="decode", frozen=True, kw_only=True):
    """Redeem ``handle`` for the KV blocks of ``token_ids`` and go on after ``output_ids``."""

    handle: bytes


class Generate(Work, tag="generate", frozen=True, kw_only=True):
    """Do both stages in one engine."""


AnyWork = Prefill | Decode | Generate
