"""Whether a worker gets on: judged by what it does, not by whether it answers.

            hangs                    time to try                 a probe was answered
    good ───────────► out, back-off ─────────────► probed ─────────────────────────────► good
                          ▲                          │ not answered in time: back-off doubled
                          └──────────────────────────┘

Nothing here has a clock or waits: it is told of time and of what was heard.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from tandem.deployment import Health
from tandem.messages import EngineEvent, Failed, Finished, Load, Preempted, Prefilled, Tokens

STUCK_STEPS = 100
"""So many steps without a token of an answer that is being written, and it is stuck."""

State = Literal["good", "out", "probed"]
_Work = Literal["none", "running", "unseen", "waiting"]


class Breaker:
    """Keeps a worker out that was found to hang, until a probe has come back from it."""

    def __init__(self, rules: Health) -> None:
        self._rules = rules
        self._back_off_s = rules.back_off_s
        self._since = 0.0
        self.state: State = "good"

    def trip(self, now: float) -> None:
        """The worker hangs. A long good time before makes it a first offence."""
        if self.state == "good" and now - self._since > self._rules.max_back_off_s:
            self._back_off_s = self._rules.back_off_s
        self.state, self._since = "out", now

    def may_probe(self, now: float) -> bool:
        """Whether the back-off is over."""
        return self.state == "out" and now - self._since >= self._back_off_s

    def probing(self) -> None:
        """A probe is under way."""
        self.state = "probed"

    def probed(self, answered: bool, now: float) -> None:
        """A probe has ended."""
        self.state, self._since = "good" if answered else "out", now
        self._back_off_s = min(2 * self._back_off_s, self._rules.max_back_off_s)

    def renewed(self, now: float) -> None:
        """The worker has a new engine, whose record is clean."""
        self.state, self._since = "good", now


class _Own:
    """One of our requests as its worker's events show it."""

    __slots__ = ("at", "done", "preempted", "steps", "tokens")

    def __init__(self, now: float, steps: int) -> None:
        self.at, self.steps, self.tokens, self.done, self.preempted = now, steps, 0, False, False


class Progress:
    """What one worker's engine does, as its polls tell."""

    def __init__(self, rules: Health, max_batch_tokens: int, longest_wait_s: float) -> None:
        """``max_batch_tokens`` of its longest step; ``longest_wait_s`` is how long an engine may rightly wait for KV or
        for blocks while nothing runs."""
        self._rules = rules
        self._max_batch_tokens = max_batch_tokens
        self._longest_wait_s = longest_wait_s
        self.begin(Load(), 0.0)

    def begin(self, load: Load, now: float) -> None:
        """A new engine, or one that is trusted again."""
        self._load = msgspec.structs.replace(load, silent_s=0.0)
        self._heard = self._still_since = self._others_at = now
        self._work: _Work = "none"
        self._own: dict[str, _Own] = {}

    def heard(self, load: Load, events: Iterable[EngineEvent], outstanding: Collection[str], now: float) -> None:
        """A poll was answered. ``outstanding`` are our requests that the worker has."""
        self._note_events(events, load.steps, now)
        for request_id in self._own.keys() - outstanding:
            del self._own[request_id]
        for request_id in outstanding:
            self._own.setdefault(request_id, _Own(now, load.steps))
        work = self._kind_of_work(load)
        if work == "none" or work != self._work or load.steps != self._load.steps:
            self._still_since = now
        self._work, self._load, self._heard = work, load, now

    def problem(self, now: float) -> str | None:
        """Why this worker is taken to hang; None if it is not."""
        silent_s = self._load.silent_s + (now - self._heard if self._load.silent_s else 0.0)
        if silent_s > self._rules.silence_s:
            return f"its engine has given no sign of life for {silent_s:.1f} s"
        still_s, allowed_s = now - self._still_since, self.allowed_s
        if self._work == "waiting":
            allowed_s += self._longest_wait_s
        if self._work != "none" and still_s > allowed_s:
            return f"its engine has work, and has made no step for {still_s:.1f} s (allowed: {allowed_s:.1f} s)"
        stuck = next((name for name, own in self._own.items() if self._is_stuck(own, now)), None)
        return f"request {stuck} gets no tokens while others do" if stuck is not None else None

    @property
    def allowed_s(self) -> float:
        """So long a step may take: some of the longest that are to be expected, as fast as the engine is."""
        load = self._load
        if load.steps == 0:
            return max(self._rules.first_step_s, self._rules.stall_s)
        decode_s = (load.step_seconds - load.prefill_seconds) / max(1, load.steps - load.prefill_steps)
        token_s = load.prefill_seconds / max(1, load.prefill_tokens)
        longest_s = max(decode_s, self._max_batch_tokens * token_s)
        return max(self._rules.stall_s, self._rules.stall_factor * longest_s)

    def _kind_of_work(self, load: Load) -> _Work:
        if load.running:
            return "running"
        if load.queued:
            return "waiting"  # for KV, or for blocks: it makes no steps then
        return "unseen" if any(not own.done for own in self._own.values()) else "none"

    def _note_events(self, events: Iterable[EngineEvent], steps: int, now: float) -> None:
        for event in events:
            if isinstance(event, Tokens):
                self._others_at = now
            if (own := self._own.get(event.request_id)) is not None:
                own.at, own.steps = now, steps
                own.tokens += isinstance(event, Tokens)
                own.preempted = isinstance(event, Preempted)
                own.done = own.done or isinstance(event, Prefilled | Finished | Failed)

    def _is_stuck(self, own: _Own, now: float) -> bool:
        """It has had tokens in steps of its own (the first one is of the step that read the prompt), and has them no
        more, in many steps that gave tokens to others, though its KV has not given way to theirs."""
        return (
            own.tokens > 1
            and not own.done
            and not own.preempted
            and now - own.at > self._rules.stuck_s
            and self._load.steps - own.steps > STUCK_STEPS
            and self._others_at > own.at
        )
