"""Whether an engine group is well, judged by its ranks' heartbeats. Pure: knows no process and no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tandem.messages import Heartbeat
from tandem.parallel.heartbeat import PERIOD_S

Phase = Literal["loading", "running", "stopped", "failed", "exited", "killed"]

START_TIMEOUT_S = 60.0
"""For a rank to be heard of for the first time."""
LOADING_SILENCE_S = 15.0
"""While libraries are loaded, a rank may hold its breath for longer."""
SHARE = 0.5
"""Of the limit: who has been silent, or stood still, for as long when another one reaches it shares its fate."""
ECHO_S = 0.5
"""A rank may fail because another one is gone. That one may be heard of a little later."""
PAUSE_S = 2.0
"""Who has not looked for as long may have stood still itself."""


@dataclass
class _Rank:
    heard: float
    """When it was heard last."""
    advanced: float
    """When it was first heard to be where it is."""
    pid: int | None = None
    phase: Phase = "loading"
    progress: int = 0


class Watch:
    """What is known of each rank. All times in seconds, of one clock that never goes back."""

    def __init__(self, hosts: Sequence[str | None], hang_timeout_s: float, now: float) -> None:
        """``hosts``: where each rank runs, None being here."""
        self._hosts = hosts
        self._hang_timeout_s = hang_timeout_s
        self._ranks = [_Rank(heard=now, advanced=now) for _ in hosts]
        self._looked = now
        self._ends: dict[int, tuple[float, Heartbeat]] = {}
        """Ranks that cannot go on, in the order in which they were heard to, and when."""

    def hear(self, rank: int, beat: Heartbeat, now: float) -> None:
        """Take one heartbeat."""
        known = self._ranks[rank]
        if known.phase != beat.phase and beat.phase == "running":
            for other in self._ranks:
                other.advanced = now  # nobody can get on before the last one has loaded
        if beat.progress != known.progress:
            known.advanced = now
        known.heard, known.pid, known.phase, known.progress = now, beat.pid, beat.phase, beat.progress
        if beat.phase in ("failed", "exited", "killed"):
            self._ends.setdefault(rank, (now, beat))

    def pid(self, rank: int) -> int | None:
        """The process id of a rank on its host, once it was heard."""
        return self._ranks[rank].pid

    def phase(self, rank: int) -> Phase:
        """The last phase that a rank told of."""
        return self._ranks[rank].phase

    def is_starting(self, rank: int, now: float) -> bool:
        """Whether a rank has not come to speak much yet."""
        known = self._ranks[rank]
        return known.phase == "loading" and (known.pid is None or now - known.heard > 2 * PERIOD_S)

    @property
    def heard(self) -> int:
        """Ranks that were heard at all."""
        return sum(rank.pid is not None for rank in self._ranks)

    def all_are(self, phase: Phase) -> bool:
        """Whether every rank is in ``phase``."""
        return all(rank.phase == phase for rank in self._ranks)

    def find_problem(self, now: float) -> str | None:
        """Why the group has to be ended now, as a sentence; None: it is well."""
        if now - self._looked > PAUSE_S:
            for rank in self._ranks:
                rank.heard = rank.advanced = now
        self._looked = now
        problem = self._find_first_end(now) or self._find_absent(now)
        return problem or self._find_silent(now) or self._find_standstill(now)

    def find_end(self) -> str | None:
        """Which rank could not go on first, and why, as far as is known: nobody is killed for another one's failure."""
        if not self._ends:
            return None
        rank = next((rank for rank, (_, beat) in self._ends.items() if beat.phase == "killed"), next(iter(self._ends)))
        beat = self._ends[rank][1]
        return f"{self.describe(rank)} {'failed: ' if beat.phase == 'failed' else ''}{beat.message}"

    def _find_first_end(self, now: float) -> str | None:
        """Once nothing is to be heard any more that came before."""
        is_over = any(beat.phase == "killed" or now - heard > ECHO_S for heard, beat in self._ends.values())
        return self.find_end() if is_over else None

    def _find_absent(self, now: float) -> str | None:
        absent = self._where(lambda rank: rank.pid is None and now - rank.heard > START_TIMEOUT_S)
        return f"{self._describe_all(absent)} did not start within {START_TIMEOUT_S:g} s" if absent else None

    def _find_silent(self, now: float) -> str | None:
        def is_silent(rank: _Rank, share: float) -> bool:
            return rank.pid is not None and now - rank.heard > share * self._patience_s(rank)

        if not (first := self._where(lambda rank: is_silent(rank, 1.0))):
            return None
        silent = self._where(lambda rank: is_silent(rank, SHARE))
        limit_s = min(self._patience_s(self._ranks[rank]) for rank in first)
        if len(silent) == 1:
            verb, fate = "has", "it is stopped, or its host or link is down"
        else:
            verb, fate = "have", "they are stopped, or their host or link is down"
        return f"{self._describe_all(silent)} {verb} been silent for {limit_s:g} s: {fate}"

    def _patience_s(self, rank: _Rank) -> float:
        """Starting MPI waits for all ranks, and lets none speak meanwhile."""
        if self.heard < len(self._ranks):
            return START_TIMEOUT_S
        return self._hang_timeout_s if rank.phase != "loading" else max(self._hang_timeout_s, LOADING_SILENCE_S)

    def _find_standstill(self, now: float) -> str | None:
        """A rank that is silent is also one behind which the others stand still: silence is to be noticed first."""
        if not self.all_are("running"):
            return None
        limit_s = self._hang_timeout_s + 2 * PERIOD_S
        if not self._where(lambda rank: now - rank.advanced > limit_s):
            return None
        still = self._where(lambda rank: now - rank.advanced > SHARE * limit_s)
        who = "no rank" if len(still) == len(self._ranks) else self._describe_all(still)
        what = "has made progress" if who == "no rank" else "made no progress"
        return f"{who} {what} for {self._hang_timeout_s:g} s, though alive: the engine's step hangs"

    def _where(self, condition: Callable[[_Rank], bool]) -> list[int]:
        return [index for index, rank in enumerate(self._ranks) if condition(rank)]

    def _describe_all(self, ranks: list[int]) -> str:
        return ", ".join(self.describe(rank) for rank in ranks)

    def describe(self, rank: int) -> str:
        """``rank 1 on 10.0.0.2 (pid 123)``."""
        host, pid = self._hosts[rank], self._ranks[rank].pid
        return f"rank {rank}" + (f" on {host}" if host else "") + (f" (pid {pid})" if pid else "")
