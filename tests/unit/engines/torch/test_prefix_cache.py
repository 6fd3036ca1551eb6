"""The prefix cache and chunks in a whole engine: the same answers, sooner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tandem.deployment import Kv, Limits
from tandem.engines.torch.engine import create
from tandem.keys import KEY_VARIABLE
from tandem.kv.hashes import hash_blocks
from tandem.messages import BlocksStored, Finished, Generate, Prefilled, Pulled, StepPlan, Tokens
from tests.unit.engines.torch.support import make_deployment, make_model, make_prompts, make_work
from tests.unit.engines.torch.test_engine import (
    KEY,
    TIMEOUT_S,
    Harness,
    as_decode,
    as_prefill,
    end_of,
    handle_of,
    tokens_of,
)

BLOCK = 4


def make_engines(
    directory: Path, count: int, dtype: str = "float32", prefix_cache: bool = True, **worker: object
) -> list[Harness]:
    """Engines on the same random model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        deployment = make_deployment(make_model("llama", directory), dtype, max_batch_size=8, **worker)
        kv = Kv(block_size=BLOCK, lease_s=TIMEOUT_S, prefix_cache=prefix_cache)
        # The bound is kept by no machine: beside running answers every chunk is the smallest.
        deployment = msgspec.structs.replace(deployment, kv=kv, limits=Limits(max_inter_token_ms=1e-6))
        return [
            Harness(create(deployment, w, epoch=i + 1, loading=lambda *_: None))
            for i, w in enumerate(deployment.worker[:count])
        ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """An engine that keeps nothing and reads every prompt at once."""
    (harness,) = make_engines(tmp_path_factory.mktemp("plain"), 1, prefix_cache=False)
    yield harness
    harness.engine.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Harness]]:
    """Two engines with empty caches, paired, that read at most 32 tokens in a step."""
    harnesses = make_engines(tmp_path, 2, max_batch_tokens=32)
    for harness, peer in zip(harnesses, reversed(harnesses), strict=True):
        harness.engine.pair(peer.engine.info)
    yield harnesses
    for harness in harnesses:
        harness.engine.stop()


def conversation(turns: int = 4) -> list[Generate]:
    """Prompts that each begin with the one before, greedy and sampled, some at the borders of blocks."""
    text, work = [], []
    for turn, piece in enumerate(make_prompts(37, 30, 21, 40, 12)[:turns]):
        text = text + piece
        seed = {"temperature": 0.9, "top_p": 0.9, "seed": turn} if turn % 2 else {}
        work += [
            make_work(f"turn-{turn}", text, 10, **seed),
            make_work(f"again-{turn}", text, 10, **seed),
            make_work(f"cut-{turn}", text[: len(text) // BLOCK * BLOCK], 10),
        ]
    return work


def names_of(harness: Harness) -> set[int]:
    """What the engine's reports say that it holds."""
    names: set[int] = set()
    for change in harness.kv:
        names = names | set(change.hashes) if isinstance(change, BlocksStored) else names - set(change.hashes)
    return names


def watch_reads(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prefill step reads from now on."""
    reads: list[int] = []
    runner = harness.engine._runner
    run = runner.run

    def watch(plan: StepPlan) -> object:
        if plan.is_prefill:
            reads.append(sum(len(row.token_ids) for row in plan.rows))
        return run(plan)

    monkeypatch.setattr(runner, "run", watch)
    return reads


def test_cached_prefixes_change_no_answer(plain: Harness, pair: list[Harness]) -> None:
    """One after another, and then all at once: the same tokens as without a cache, greedy and sampled."""
    expected = [tokens_of(plain.run([w])[0]) for w in conversation()]
    harness, cached = pair[1], []
    for work in conversation():
        events = harness.run([work])[0]
        assert tokens_of(events) == expected[len(cached)]
        end = events[-1]
        assert isinstance(end, Finished)
        cached.append(end.cached_tokens)
    assert cached[0] == 0
    assert cached[1] >= 36 // BLOCK * BLOCK  # the prompt's whole blocks but for the last token
    assert all(n > 0 for n in cached[1:])
    together = [msgspec.structs.replace(w, request_id=f"{w.request_id} again") for w in conversation()]
    assert [tokens_of(e) for e in harness.run(list(together))] == expected
    assert harness.until_idle().blocks_cached > 0


def test_the_answer_is_reused_as_the_prompt_is(plain: Harness, pair: list[Harness]) -> None:
    harness = pair[1]
    (prompt,) = make_prompts(18)
    answer = tokens_of(harness.run([make_work("first", prompt, 20)])[0])
    work = make_work("second", [*prompt, *answer, 1, 2], 6)
    events = harness.run([work])[0]
    assert tokens_of(events) == tokens_of(plain.run([work])[0])
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.cached_tokens == 37 // BLOCK * BLOCK
    assert end.compute_s > 0


def test_tenants_do_not_share(pair: list[Harness]) -> None:
    (prompt,) = make_prompts(30)
    work = make_work("a", prompt)
    salted = [msgspec.structs.replace(work, request_id=n, salt=s) for n, s in (("b", "x"), ("c", "y"), ("d", "x"))]
    ends = [pair[1].run([w])[0][-1] for w in (work, *salted)]
    assert [end.cached_tokens for end in ends if isinstance(end, Finished)] == [0, 0, 0, 28]


def test_a_hand_over_moves_only_what_decode_has_not(plain: Harness, pair: list[Harness]) -> None:
    """A conversation through both stages, each with its cache."""
    prefill, decode = pair
    bytes_per_block = decode.engine.info.transfers[0].block_bytes
    moved, cached = [], []
    for work in conversation():
        first = prefill.run([as_prefill(work)])[0]
        second = decode.run([as_decode(work, tokens_of(first), handle_of(first))])[0]
        assert tokens_of(first) + tokens_of(second) == tokens_of(plain.run([work])[0])
        assert isinstance(first[-1], Prefilled)
        assert isinstance(second[0], Pulled)
        cached.append(first[-1].cached_tokens)
        moved.append(second[0].bytes_moved // bytes_per_block)
    assert cached[:4] == [0, 36, 32, 36]
    assert moved[:3] == [10, 1, 1]
    assert moved[3] == -(-67 // BLOCK) - 37 // BLOCK  # not the blocks of the prompt before
    for harness in pair:
        load = harness.until_idle()
        assert (load.handles_held, load.blocks_used) == (0, 0)


def test_reports_say_what_the_cache_holds(pair: list[Harness]) -> None:
    """Stored in whole blocks of prompt and answer; removed for others' sake; never named twice."""
    harness = pair[1]
    (prompt,) = make_prompts(30)
    answer = tokens_of(harness.run([make_work("named", prompt, 9)])[0])
    harness.until_idle()
    names = hash_blocks([*prompt, *answer[:-1]], BLOCK)
    assert names_of(harness) == set(names)
    assert [name for change in harness.kv for name in change.hashes] == names
    blocks = harness.load.blocks_total
    assert harness.load.blocks_cached == len(names)
    for i in range(3 * blocks // 100):
        harness.run([make_work(f"other-{i}", make_prompts(400 + i)[0], 9)])
    assert harness.until_idle().blocks_cached == len(names_of(harness)) == len(harness.engine._pool._by_name)
    assert not names_of(harness) & set(names)


def test_long_prompts_are_read_in_chunks(plain: Harness, pair: list[Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    """No step reads more than ``max_batch_tokens``, or than the chunk while others write; the answers are the same."""
    harness = pair[1]
    reads = watch_reads(harness, monkeypatch)
    prompts = make_prompts(100, 150, 3, 64, 65, 31)
    work = [make_work(f"long-{i}", p, 12, temperature=0.8 * (i % 2), seed=i) for i, p in enumerate(prompts)]
    alone = harness.run([work[0]])[0]
    assert reads == [32, 32, 32, 4]
    del reads[:]
    running = make_work("running", [7, 8, 9], 300)
    harness.engine.submit([running])
    harness.wait("running", Tokens)
    rest = harness.run(list(work[1:]))
    assert [tokens_of(e) for e in [alone, *rest]] == [tokens_of(plain.run([w])[0]) for w in work]
    assert sum(reads) == 3 + sum(map(len, prompts[1:]))
    assert set(reads[1:-1]) == {16}
    assert tokens_of(harness.wait("running")) == tokens_of(plain.run([running])[0])


def test_a_cancel_in_mid_prompt_frees_all_of_it(pair: list[Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks that were read stay for the next one."""
    harness = pair[1]
    runner = harness.engine._runner
    run, steps = runner.run, []

    def cancel_after_two(plan: StepPlan) -> object:
        steps.append(plan)
        if len(steps) == 2:
            harness.engine.cancel(["torn"])
        return run(plan)

    monkeypatch.setattr(runner, "run", cancel_after_two)
    (prompt,) = make_prompts(200)
    assert end_of(harness.run([make_work("torn", prompt)])[0]) == "cancelled"
    assert len(steps) == 2
    load = harness.until_idle()
    assert (load.blocks_used, load.blocks_cached) == (0, 64 // BLOCK)
    end = harness.run([make_work("whole", prompt)])[0][-1]
    assert isinstance(end, Finished)
    assert end.cached_tokens == 64


def test_a_chunk_that_fails_leaves_nothing(pair: list[Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed step has written is never found."""
    harness = pair[1]
    (prompt,) = make_prompts(100)
    work = make_work("broken", prompt)
    with monkeypatch.context() as patch:
        patch.setattr(harness.engine._runner, "run", lambda _plan: 1 // 0)
        harness.run([work])
    assert harness.until_idle().blocks_cached == 0
    assert harness.kv == []


def test_bfloat16_runs_with_cache_and_chunks(tmp_path: Path) -> None:
    """Its rounding depends on the size of a batch, so that answers may differ; all of them come."""
    (harness,) = make_engines(tmp_path, 1, "bfloat16", max_batch_tokens=32)
    try:
        for work in conversation():
            assert len(tokens_of(harness.run([work])[0])) == 10
        again = [msgspec.structs.replace(w, request_id=f"{w.request_id} again") for w in conversation()]
        for events in harness.run(list(again)):
            end = events[-1]
            assert isinstance(end, Finished)
            assert (len(tokens_of(events)), end.cached_tokens > 0) == (10, True)
        harness.until_idle()
    finally:
        harness.engine.stop()
