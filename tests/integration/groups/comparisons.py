"""The same requests on engines of all kinds, and from each to each: all say the same."""

from __future__ import annotations

import itertools
import random

from msgspec.structs import replace
from running_engine import RunningEngine

from tandem.kv.reshard import block_bytes_of
from tandem.messages import Finished, Generate, Lender, Sampling, Stopping
from tests.integration.groups.engines import bytes_pulled, hand_over, tokens_of


def make_work(vocab_size: int, lengths: list[int], max_tokens: int) -> list[Generate]:
    """Greedy requests, and one that draws its tokens; the same in every run."""
    rng = random.Random(7)
    return [
        Generate(
            request_id=f"w{i}",
            token_ids=[rng.randrange(vocab_size) for _ in range(length)],
            sampling=Sampling(temperature=0.8, seed=11) if i == 1 else Sampling(),
            stopping=Stopping(max_tokens=max_tokens),
        )
        for i, length in enumerate(lengths)
    ]


def assert_equal_everywhere(engines: dict[str, RunningEngine], work: list[Generate]) -> None:
    """Every engine by itself, and every pair of two, says what the engine of one rank does."""
    reference, *_ = engines.values()
    expected = [tokens_of(events) for events in reference.run(list(work))]
    for engine in list(engines.values())[1:]:
        assert [tokens_of(events) for events in engine.run(list(work))] == expected, engine.info.worker_id
    for prefill, decode in itertools.permutations(engines.values(), 2):
        done = hand_over(prefill, decode, work)
        names = prefill.info.worker_id, decode.info.worker_id
        assert all(isinstance(events[-1], Finished) for events in done), (names, [events[-1] for events in done])
        assert [tokens_of(events) for events in done] == expected, names
        moved, whole = [bytes_pulled(events) for events in done], [kv_bytes(decode, w) for w in work]
        if decode.load.blocks_cached:
            assert all(0 < some <= most for some, most in zip(moved, whole, strict=True)), names
        else:
            assert moved == whole, names
    for engine in engines.values():
        assert engine.until_idle().blocks_used == 0


def assert_lent_everywhere(engines: dict[str, RunningEngine]) -> None:
    """What one engine has read, every other one borrows, whatever the ranks of the two."""
    pairs = list(itertools.permutations(engines.values(), 2))
    prompts = make_work(40_000, [100 + i for i in range(2 * len(pairs))], max_tokens=6)[2:]
    for (lender, borrower), work in zip(pairs, prompts, strict=False):
        names = lender.info.worker_id, borrower.info.worker_id
        (expected,) = lender.run([work])
        lender.until_idle()
        before = borrower.load.tokens_borrowed
        (events,) = borrower.run([replace(work, lender=Lender(worker_id=lender.info.worker_id, num_tokens=96))])
        assert tokens_of(events) == tokens_of(expected), names
        assert borrower.until_idle().tokens_borrowed - before == 96, names
        assert lender.until_idle().handles_held == 0, names


def kv_bytes(engine: RunningEngine, work: Generate) -> int:
    """What a hand-over to ``engine`` has to move: every rank its own part, once."""
    blocks = -(-len(work.token_ids) // engine.info.kv.block_size)
    partition = engine.info.partition
    return blocks * sum(block_bytes_of(partition, rank, engine.info.kv) for rank in range(partition.size))
