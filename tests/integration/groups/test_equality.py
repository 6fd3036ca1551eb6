"""A model split over ranks says what one rank says, token for token in fp32, whatever the sizes of the two stages."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from running_engine import RunningEngine

from tandem.deployment import Kv
from tandem.kv.reshard import block_bytes_of
from tandem.messages import Finished, Generate, Lender, Partition, Sampling, Stopping
from tests.checkpoints import demo_model, make_random_model
from tests.integration.groups.engines import bytes_pulled, hand_over, run_engines, tokens_of

BLOCK = 4
PARTITIONS = {
    "tp1": Partition(),
    "tp2": Partition(tensor_parallel_size=2),
    "tp4": Partition(tensor_parallel_size=4),
    "tp4_again": Partition(tensor_parallel_size=4),
    "pp2": Partition(pipeline_parallel_size=2),
    "tp2_pp2": Partition(tensor_parallel_size=2, pipeline_parallel_size=2),
}
"""On a model with 2 KV heads and 3 layers: with 4 ranks KV heads are replicated, and stages have unlike layers."""
DEMO_PARTITIONS = {
    "one": Partition(),
    "three": Partition(tensor_parallel_size=3),
    "three_again": Partition(tensor_parallel_size=3),
}


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


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Biases and untied heads show what is summed twice or not at all."""
    directory = tmp_path_factory.mktemp("model")
    return make_random_model("llama_biased", directory, num_attention_heads=8, num_hidden_layers=3)


@pytest.fixture(scope="module", params=["mpich", "openmpi"])
def engines(
    request: pytest.FixtureRequest, random_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RunningEngine]]:
    directory = tmp_path_factory.mktemp(request.param)
    with run_engines(
        random_model, PARTITIONS, request.param, directory, Kv(block_size=BLOCK, prefix_cache=False)
    ) as running:
        yield running


def test_all_sizes_to_all_sizes(engines: dict[str, RunningEngine]) -> None:
    assert_equal_everywhere(engines, make_work(300, [1, 3, 4, 33, 120], max_tokens=10))


@pytest.mark.parametrize("engines", ["mpich"], indirect=True)
def test_ranks_stay_in_step_when_requests_give_up_their_kv(
    engines: dict[str, RunningEngine], random_model: Path, tmp_path: Path
) -> None:
    """Of 101 blocks six answers want 43 each. What gave way is read anew by all ranks, also after a hand-over. Greedy:
    sums over ranks round differently, and of so many draws one lies on an edge."""
    work = [replace(w, sampling=Sampling()) for w in make_work(300, [20] * 6, max_tokens=150)]
    expected = [tokens_of(events) for events in engines["tp1"].run(list(work))]
    tp2, kv = {"tp2": PARTITIONS["tp2"]}, Kv(block_size=BLOCK)
    with run_engines(random_model, tp2, "mpich", tmp_path, kv, kv_memory="152KiB") as own:
        (tight,) = own.values()
        for one, other in itertools.permutations((engines["tp4"], tight)):
            one.pair(other)
        assert [tokens_of(events) for events in tight.run(list(work))] == expected
        alone = tight.load.preemptions
        assert [tokens_of(events) for events in hand_over(engines["tp4"], tight, work)] == expected
        assert tight.until_idle().preemptions > alone > 0


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_the_demo_model_on_one_and_three_ranks(mpi: str, tmp_path: Path) -> None:
    """With prefix caches: from the second time on, prompts are there already."""
    with run_engines(demo_model(), DEMO_PARTITIONS, mpi, tmp_path, Kv()) as engines:
        assert_equal_everywhere(engines, make_work(40_000, [1, 40, 150], max_tokens=8))
        assert_lent_everywhere(engines)
