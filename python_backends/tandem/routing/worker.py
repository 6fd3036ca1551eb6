"""What one worker has in hand and how fast it is, as a router knows it.

Of the work in hand, this router's own part is known to the moment. The part of others is whatever the worker's last
report had beyond what this router had sent it by then. So no choice is forgotten until a report catches up with it, and
none is counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from tandem.messages import Load
from tandem.routing.answers import AnswerLengths
from tandem.routing.speeds import Mean, Speeds

# Until any worker has been measured. All have the same then, so these decide little.
PREFILL_S = 1e-3
"""Per prompt token."""
STEP_S = 0.02
"""Per decode step."""
PULL_S = 1e-9
"""Per byte of KV."""

ALIKE = 1.5
"""A worker that is by less than this factor faster or slower than all together reads prompts as they do: the lengths of
the prompts that it happened to get explain as much. Else one that got a long one would not get others for long."""


class Amounts:
    """Of work: requests, prompt tokens to be read, KV blocks."""

    __slots__ = ("blocks", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = self.tokens = self.blocks = 0

    def add(self, requests: int, tokens: int, blocks: int) -> None:
        """Count more, or with negative numbers less."""
        self.requests += requests
        self.tokens += tokens
        self.blocks += blocks


class WorkerState:
    """One worker's row in the table; ``on_change`` is called when what it has in hand is another."""

    def __init__(self, typical: Speeds, answers: AnswerLengths, on_change: Callable[[WorkerState], None]) -> None:
        """``typical`` are the speeds of all workers together: they stand for one that has not been measured.
        ``answers`` tell what is to come of the blocks that requests may yet take."""
        self.largest_batch = 1
        self.blocks_total = 0
        self.prefill_s = PREFILL_S
        """Per uncached prompt token."""
        self.prefill_more_s = PREFILL_S
        """Per token that a prefill step reads more than others."""
        self.prefill_step_s = 0.0
        """Per prefill step; 0 where none was measured."""
        self.pull_s = PULL_S
        """Per byte of KV from another worker."""
        self.requests = self.tokens = self.blocks = 0
        """In hand, this router's and others': requests, uncached prompt tokens that are still to be read, and KV blocks
        that are taken, or will be as answers grow."""
        self._own, self._sent = Amounts(), Amounts()
        self._load = Load()
        self._speeds, self._typical, self._answers = Speeds(), typical, answers
        self._step_s = STEP_S  # divided by (largest batch + batches it was measured in)
        self._changed = on_change

    # -------------------------------------------------------------- what is known

    @property
    def own_requests(self) -> int:
        """Of those in hand, this router's."""
        return self._own.requests

    def step_s(self, sequences: int) -> float:
        """Of a decode step with so many sequences, foretold from the measured steps: in a full batch one is taken to be
        twice as long as in an empty batch."""
        return self._step_s * (self.largest_batch + sequences)

    # -------------------------------------------------------------- what happens

    def begin(self, largest_batch: int, load: Load) -> None:
        """The worker has a new engine, whose counters start from 0."""
        self.largest_batch, self._load = largest_batch, Load()
        self.report(load)

    def end(self) -> None:
        """The worker is gone, and with it what others had there. This router's own part is ended request by request."""
        self._hold()
        self._changed(self)

    def report(self, load: Load) -> None:
        """The worker says how it does."""
        self._speeds.update(self._load, load)
        self._typical.update(self._load, load)
        self._load, sent = load, self._sent
        blocks = load.blocks_used + math.ceil(self._answers.share * load.blocks_wanted)
        self._hold(
            max(0, load.queued + load.running - sent.requests),
            max(0, load.queued_tokens - sent.tokens),
            max(0, blocks - sent.blocks),
        )
        self.blocks_total = load.blocks_total
        self._measure_prefill()
        self.pull_s = _measured(self._speeds.pull, self._typical.pull, PULL_S)
        batch = _measured(self._speeds.batch, self._typical.batch, 1.0)
        step_s = _measured(self._speeds.step, self._typical.step, STEP_S)
        self._step_s = step_s / (self.largest_batch + batch)
        self._changed(self)

    def _hold(self, requests: int = 0, tokens: int = 0, blocks: int = 0) -> None:
        """So much of others is in hand, beside this router's own part."""
        own = self._own
        self.requests, self.tokens, self.blocks = own.requests + requests, own.tokens + tokens, own.blocks + blocks

    def _measure_prefill(self) -> None:
        typical = self._typical.prefill
        if not typical.known:
            return
        steps = self._speeds.prefill if self._speeds.prefill.known else typical
        self.prefill_step_s = steps.step_s
        if 1 / ALIKE < steps.token_s / typical.token_s < ALIKE:
            steps = typical
        self.prefill_s, self.prefill_more_s = steps.token_s, steps.more_s

    # -------------------------------------------------------------- this router's part

    def count(self, requests: int, tokens: int, blocks: int, was_sent: bool) -> None:
        """More is in hand, or with negative numbers less; ``was_sent``: of what the worker has got."""
        self._own.add(requests, tokens, blocks)
        if was_sent:
            self._sent.add(requests, tokens, blocks)
        self.requests += requests
        self.tokens += tokens
        self.blocks += blocks
        self._changed(self)

    def sent(self, requests: int, tokens: int, blocks: int) -> None:
        """The worker has got so much of what is in hand, and counts it in its reports from now on."""
        self._sent.add(requests, tokens, blocks)


class Booking(msgspec.Struct, gc=False):
    """One request's part of what a worker has in hand, from the choice to the end."""

    _worker: WorkerState
    _tokens: int
    _blocks: int
    _coming: Amounts | None = None
    """Where it is counted until the worker gets it."""
    _sent: bool = False
    _ended: bool = False

    def __post_init__(self) -> None:
        self._worker.count(1, self._tokens, self._blocks, was_sent=False)
        if self._coming is not None:
            self._coming.add(1, 0, self._blocks)

    def send(self) -> None:
        """The worker has got the request, and counts it in its reports from now on."""
        if not (self._sent or self._ended):
            self._sent = True
            self._worker.sent(1, self._tokens, self._blocks)
            self._arrive()

    def read(self) -> None:
        """The prompt has been read: the first token is there."""
        if self._tokens and not self._ended:
            self._worker.count(0, -self._tokens, 0, self._sent)
            self._tokens = 0

    def end(self) -> None:
        """The worker has nothing of the request any more; may be called again."""
        if not self._ended:
            self._ended = True
            self._worker.count(-1, -self._tokens, -self._blocks, self._sent)
            self._arrive()

    def _arrive(self) -> None:
        if self._coming is not None:
            self._coming.add(-1, 0, -self._blocks)
            self._coming = None


def _measured(mean: Mean, typical: Mean, guess: float) -> float:
    return mean.value if mean.known else typical.value if typical.known else guess
