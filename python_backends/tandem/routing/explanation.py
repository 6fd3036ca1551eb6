"""A routing decision in words and figures, as ``tandem explain`` gets it. Imports no router: it is for clients too."""

from __future__ import annotations

import msgspec

from tandem.messages import StageName
from tandem.routing.disaggregation import Task, Way


class ExplainedCandidate(msgspec.Struct, frozen=True):
    """One worker that could have been chosen."""

    worker: str
    cached_tokens: int
    """Of the prompt."""
    cost: float
    parts: dict[str, float]
    """What the cost is made of."""


class ExplainedChoice(msgspec.Struct, frozen=True):
    """One worker that was chosen, or weighed, for a task."""

    task: Task
    worker: str
    reason: str
    unit: str
    """Of the costs."""
    candidates: list[ExplainedCandidate]


class Explanation(msgspec.Struct, frozen=True):
    """A whole decision."""

    policy: str
    way: Way
    reason: str
    """Why this way."""
    prompt_tokens: int
    choices: list[ExplainedChoice]
    lender: str = ""
    """Whom the prefill worker borrows from."""
    lent_tokens: int = 0
    """Of the prompt: those whose KV the lender holds."""
    keeper: StageName | None = None
    """The stage whose worker keeps the KV; None: each keeps what it has."""
