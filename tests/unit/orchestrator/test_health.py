"""What is taken for a hang and what is not; how a worker that hung comes back. No test waits: time is told."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tandem.deployment import Health
from tandem.messages import EngineEvent, Finished, Load, Preempted, Prefilled, Tokens
from tandem.orchestrator.health import Breaker, Progress

RULES = Health()
WAIT_S = 40.0
"""How long KV and blocks may rightly be waited for."""
STEPPED = Load(steps=100, step_seconds=3.0, prefill_steps=50, prefill_tokens=5000, prefill_seconds=1.0)


def token(name: str) -> EngineEvent:
    return Tokens(request_id=name, index=0, token_ids=[1])


class Watched:
    """A worker polled once a second."""

    def __init__(self, load: Load = STEPPED, max_batch_tokens: int = 2048) -> None:
        self.progress = Progress(RULES, max_batch_tokens, WAIT_S)
        self.progress.begin(load, 0.0)
        self.load, self.now = load, 0.0

    def poll(self, *events: EngineEvent, ours: tuple[str, ...] = (), seconds: float = 1.0, **load: Any) -> str | None:
        self.now += seconds
        self.load = msgspec.structs.replace(self.load, **load)
        self.progress.heard(self.load, events, ours, self.now)
        return self.progress.problem(self.now)

    def polls(self, count: float, **given: Any) -> list[str | None]:
        return [self.poll(**given) for _ in range(int(count))]


def test_an_engine_that_runs_and_makes_no_step_hangs() -> None:
    worker = Watched()
    said = worker.polls(RULES.stall_s + 2, running=1)
    assert said[: int(RULES.stall_s)] == [None] * int(RULES.stall_s)
    assert "has made no step for 11.0 s" in str(said[-1])


def test_one_that_says_it_is_idle_while_it_has_our_request_hangs() -> None:
    worker = Watched()
    assert worker.polls(RULES.stall_s, ours=("a",)) == [None] * int(RULES.stall_s)
    assert "has made no step" in str(worker.polls(2, ours=("a",))[-1])


def test_a_request_whose_work_here_is_done_is_no_work() -> None:
    """Prefill's part is watched until decode has the KV."""
    worker = Watched()
    worker.poll(ours=("a", "b"))
    worker.poll(
        Prefilled(request_id="a", handle=b""), Finished(request_id="b", reason="length"), ours=("a", "b"), steps=101
    )
    assert worker.polls(1000, ours=("a", "b")) == [None] * 1000


def test_an_idle_engine_may_rest() -> None:
    assert Watched().polls(1000) == [None] * 1000


def test_an_engine_without_a_sign_of_life_hangs_whatever_it_has() -> None:
    worker = Watched()
    assert worker.poll(silent_s=RULES.silence_s - 1) is None
    assert "no sign of life" in str(worker.poll(silent_s=RULES.silence_s + 0.1))


def test_a_queue_that_waits_for_kv_or_blocks_is_no_hang_before_leases_have_ended() -> None:
    worker = Watched()
    allowed = int(WAIT_S + RULES.stall_s)
    assert worker.polls(allowed, queued=5) == [None] * allowed
    assert worker.polls(2, queued=5)[-1] is not None


def test_a_slow_engine_gets_the_time_that_its_longest_step_takes() -> None:
    """2048 tokens at 20 ms: 41 s."""
    slow = msgspec.structs.replace(STEPPED, prefill_seconds=100.0, step_seconds=200.0)
    worker = Watched(slow)
    assert worker.polls(160, running=1) == [None] * 160
    assert worker.polls(5, running=1)[-1] is not None


def test_a_new_engine_gets_time_for_its_first_step() -> None:
    worker = Watched(Load())
    allowed = int(RULES.first_step_s)
    assert worker.polls(allowed, running=1, ours=("a",)) == [None] * allowed
    assert worker.polls(2, running=1, ours=("a",))[-1] is not None


def test_a_request_that_gets_no_tokens_while_others_do_is_stuck() -> None:
    worker = Watched()
    worker.poll(token("a"), ours=("a", "b"), running=2)
    worker.poll(token("a"), token("a"), ours=("a", "b"), running=2)
    said = [worker.poll(token("b"), ours=("a", "b"), steps=100 + 5 * n) for n in range(1, int(RULES.stuck_s) + 3)]
    assert said[:-2] == [None] * (len(said) - 2)
    assert "request a gets no tokens while others do" in str(said[-1])


def test_a_request_that_waits_its_turn_is_not_stuck() -> None:
    """However long the queue: ``waits`` has had no token in a step of its own, ``first`` only the prompt's."""
    worker = Watched()
    worker.poll(ours=("waits", "first", "b"))
    worker.poll(token("first"), ours=("waits", "first", "b"))
    for n in range(1, 500):
        assert worker.poll(token("b"), ours=("waits", "first", "b"), steps=100 + 5 * n, running=1) is None


def test_a_request_that_gave_its_kv_up_to_others_is_not_stuck_until_it_has_tokens_again() -> None:
    worker = Watched()
    for _ in range(2):
        worker.poll(token("a"), ours=("a", "b"), running=2)
    worker.poll(Preempted(request_id="a"), ours=("a", "b"), running=1)
    said = [worker.poll(token("b"), ours=("a", "b"), steps=100 + 5 * n) for n in range(1, 2 * int(RULES.stuck_s))]
    assert said == [None] * len(said)
    worker.poll(token("a"), ours=("a", "b"))
    said = [worker.poll(token("b"), ours=("a", "b"), steps=9000 + 5 * n) for n in range(2 * int(RULES.stuck_s))]
    assert "request a gets no tokens while others do" in str(said[-1])


def test_a_request_that_is_the_only_one_is_judged_by_steps() -> None:
    worker = Watched()
    worker.poll(token("a"), ours=("a",), running=1)
    worker.poll(token("a"), ours=("a",), running=1)
    for n in range(1, 500):  # a long prompt of another orchestrator's, read in chunks
        assert worker.poll(ours=("a",), steps=100 + n, running=2) is None


@given(
    steps=st.lists(st.tuples(st.floats(0.05, 9.0), st.booleans(), st.integers(0, 200)), max_size=60),
    tokens=st.integers(1, 8192),
)
def test_whoever_steps_is_never_taken_to_hang(steps: list[tuple[float, bool, int]], tokens: int) -> None:
    """Steps of any length up to ``stall_s``, of prompts and answers, with a queue of any length."""
    worker = Watched(Load(), max_batch_tokens=tokens)
    load = worker.load
    for number, (seconds, is_prefill, queued) in enumerate(steps, 1):
        load = msgspec.structs.replace(
            load,
            steps=number,
            step_seconds=load.step_seconds + seconds,
            prefill_steps=load.prefill_steps + is_prefill,
            prefill_tokens=load.prefill_tokens + (tokens if is_prefill else 0),
            prefill_seconds=load.prefill_seconds + (seconds if is_prefill else 0.0),
        )
        fields = msgspec.structs.asdict(load) | {"running": 1, "queued": queued}
        assert worker.poll(ours=("a", "b"), seconds=seconds, **fields) is None


@given(st.lists(st.floats(0.1, 5.0), min_size=1, max_size=200), st.integers(0, 100), st.booleans())
def test_whoever_stands_still_is_found_in_time(polls: list[float], queued: int, is_running: bool) -> None:
    worker = Watched()
    load = {"running": 1, "queued": queued} if is_running else {"running": 0, "queued": 0}
    for seconds in polls:
        said = worker.poll(ours=("a",), seconds=seconds, **load)
        began = polls[0]
        if worker.now - began > worker.progress.allowed_s:
            assert said is not None
            return
        assert said is None


# ------------------------------------------------------------------ the breaker


def test_back_off_doubles_with_each_probe_and_begins_anew_after_a_good_time() -> None:
    breaker = Breaker(Health(back_off_s=1.0, max_back_off_s=8.0))
    now, waits = 100.0, []
    breaker.trip(now)
    for _ in range(5):
        began = now
        while not breaker.may_probe(now):
            now += 0.25
        waits.append(now - began)
        breaker.probing()
        assert breaker.state == "probed"
        assert not breaker.may_probe(now + 100)
        breaker.probed(False, now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0]
    breaker.probed(True, now)
    assert breaker.state == "good"
    breaker.trip(now + 1.0)  # again, after a moment
    assert not breaker.may_probe(now + 8.0)
    breaker.probed(True, now + 20.0)
    breaker.trip(now + 40.0)
    assert breaker.may_probe(now + 41.0)


def test_a_new_engine_has_a_clean_record() -> None:
    breaker = Breaker(RULES)
    breaker.trip(0.0)
    breaker.renewed(1.0)
    assert breaker.state == "good"
