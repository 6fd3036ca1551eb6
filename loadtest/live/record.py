"""One request from its client's point of view: when it was due, when its tokens came, how it ended."""

from __future__ import annotations

import re

import msgspec

from live.events import Event

_CODE = re.compile(r"\[([a-z_]+)\]")
LEFT = "left"
"""Finish reason of a request whose client went before the end."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All times in seconds, by one clock for all requests of a run, the run's beginning being 0."""

    kind: str
    """What it was part of: a sort of user, a policy."""
    tenant: str = ""
    due: float
    """When it should have been sent; waiting counts from here on."""
    sent: float
    ended: float
    ttft: float | None = None
    """From ``due`` to the first token; None where none came."""
    gaps: list[float] = []
    """Between tokens, one less than there are. Of tokens of one message the first waited, the others did not."""
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish: str = ""
    """``stop``, ``length`` or ``cancelled`` as the server says, ``left``; empty where an error came."""
    error: str = ""
    prefill_worker: str = ""
    decode_worker: str = ""

    @property
    def seconds(self) -> float:
        """From ``due`` to the end."""
        return self.ended - self.due

    @property
    def error_code(self) -> str:
        """The code that an error's text begins with, else its first words; empty where there is none."""
        found = _CODE.search(self.error)
        return found[1] if found else self.error[:60]


class Recording:
    """Takes in the responses of one request as they come."""

    def __init__(self, kind: str, due: float, sent: float, tenant: str = "") -> None:
        """Times as in ``Record``."""
        self.kind, self.tenant, self.due, self.sent = kind, tenant, due, sent
        self.pieces: list[str] = []
        self.tokens = 0
        self._first: float | None = None
        self._last = 0.0
        self._gaps: list[float] = []
        self._error = ""
        self._facts = Event()

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.pieces)

    def take(self, event: Event, at: float) -> None:
        """A response that came at that time."""
        if event.error:
            self._error = event.error
            return
        count = event.num_tokens
        if count:
            if self._first is None:
                self._first = at
            else:
                self._gaps.append(at - self._last)
            self._gaps += [0.0] * (count - 1)
            self._last = at
            self.tokens += count
        if event.text_output:
            self.pieces.append(event.text_output)
        if event.finish_reason:
            self._facts = event

    def end(self, at: float, *, left: bool = False, error: str = "") -> Record:
        """The stream has ended, or its client has left it."""
        facts, error = self._facts, error or self._error
        if not (left or error or facts.finish_reason):
            error = "the stream ended without a finish reason"
        return Record(
            kind=self.kind,
            tenant=self.tenant,
            due=self.due,
            sent=self.sent,
            ended=at,
            ttft=None if self._first is None else self._first - self.due,
            gaps=self._gaps,
            tokens=self.tokens,
            prompt_tokens=facts.num_input_tokens,
            cached_tokens=facts.num_cached_tokens,
            finish="" if error else LEFT if left else facts.finish_reason,
            error=error,
            prefill_worker=facts.prefill_worker,
            decode_worker=facts.decode_worker,
        )
