"""Whatever is lost, whenever and however often: the undisturbed answer token by token, or an error after as many tries
as are allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.deployment import Limits
from tandem.errors import ErrorCode, TandemError
from tandem.lanes.client import Mailbox
from tandem.messages import AnyWork, Decode, Failed, Finished, Prefill, Prefilled, Pulled, StageName, Tokens
from tandem.orchestrator import recovery as recovery_module
from tandem.text.codec import TextCodec
from tests.unit.orchestrator.trips import Trip
from tests.unit.orchestrator.workers import Lane

ANSWER = list(range(40, 52))
CODES: list[ErrorCode] = ["worker_lost", "engine_failed", "transfer_failed", "lease_expired", "handle_stale_epoch"]


@dataclass(frozen=True)
class Play:
    """What happens to one piece of work."""

    good: bool = True
    refused: bool = False
    before_pull: bool = False
    source_lost: bool = False
    """The prefill worker is lost, not the one that has the work."""
    tokens: int = 0
    """Made before it fails; there may be no more to make."""
    pieces: int = 1
    """Tokens in one event."""
    repeats: bool = False
    """Events begin with tokens that were told before."""
    code: ErrorCode = "worker_lost"


bad_plays = st.builds(
    Play,
    good=st.just(False),
    refused=st.booleans(),
    before_pull=st.booleans(),
    source_lost=st.booleans(),
    tokens=st.integers(0, len(ANSWER)),
    pieces=st.integers(1, 4),
    repeats=st.booleans(),
    code=st.sampled_from(CODES),
)
good_plays = st.builds(Play, pieces=st.integers(1, 4), repeats=st.booleans())


class Actor(Lane):
    """A worker that plays the next play of a script with each piece of work, and goes on well after its end."""

    def __init__(self, stage: StageName, number: int, script: Iterator[Play], all_of_them: list[Actor]) -> None:
        super().__init__(stage, number)
        self.script, self.all_of_them = script, all_of_them
        all_of_them.append(self)

    async def submit(self, work: AnyWork, mailbox: Mailbox) -> Mailbox:
        play = next(self.script, Play())
        if play.refused:
            raise TandemError("worker_lost", "has restarted")
        await super().submit(work, mailbox)
        asyncio.get_running_loop().call_soon(self._act, work, play)
        return mailbox

    def _act(self, work: AnyWork, play: Play) -> None:
        name, begin = work.request_id, len(work.output_ids)
        failed = Failed(request_id=name, code=play.code, message="lost")
        end = begin + 1 if isinstance(work, Prefill) else len(ANSWER)
        if not play.good:
            end = min(end, begin + play.tokens)
        if isinstance(work, Decode):
            if play.source_lost:
                for lane in self.all_of_them:
                    if lane is not self:
                        lane.lose()
            if play.before_pull and not play.good:
                self.say(failed)
                return
            self.say(Pulled(request_id=name, bytes_moved=1, seconds=0.1))
        for at in range(begin, end, play.pieces):
            first = max(begin, at - 2) if play.repeats else at
            self.say(Tokens(request_id=name, index=first, token_ids=ANSWER[first : min(end, at + play.pieces)]))
        if not play.good:
            self.say(failed)
        elif isinstance(work, Prefill):
            over = end == len(ANSWER)
            self.say(
                Prefilled(request_id=name, handle=None, finish_reason="length")
                if over
                else Prefilled(request_id=name, handle=b"ticket")
            )
        else:
            self.say(Finished(request_id=name, reason="length"))


@given(script=st.lists(bad_plays | good_plays, max_size=12), each=st.integers(1, 3), whole=st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_script_of_losses(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch, script: list[Play], each: int, whole: bool
) -> None:
    monkeypatch.setattr(recovery_module, "BACK_OFF_S", 0.0)

    async def run() -> Trip:
        limits = Limits(max_migrations=3)
        prompt = list(range(5, 25)) if whole else [5, 6, 7]
        make_lane = partial(Actor, script=iter(script), all_of_them=[])
        fields = {"max_tokens": len(ANSWER), "ignore_eos": True, "token_ids": prompt}
        trip = Trip(codec, each=each, limits=limits, make_lane=make_lane, **fields)
        trip.workers.whole = whole
        trip.start()
        await trip.end()
        return trip

    trip = asyncio.run(run())
    migrations = sum(
        trip.metrics.registry.get_sample_value("tandem_migrations_total", {"reason": code}) or 0 for code in CODES
    )
    if trip.client.error is None:
        assert trip.client.ids() == ANSWER
        assert trip.client.text() == codec.decode(ANSWER)
        assert trip.client.fact("finish_reason") == "length"
        assert trip.client.fact("num_output_tokens") == len(ANSWER)
        assert trip.client.fact("num_input_tokens") == (20 if whole else 3)
        assert migrations <= 3
    else:
        assert trip.client.error.code in CODES
        assert migrations == 3
        assert trip.client.ids() == ANSWER[: len(trip.client.ids())]
    if all(play.good for play in script):
        assert trip.client.error is None
        assert migrations == 0
