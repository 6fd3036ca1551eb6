"""A model split over ranks says what one rank says, token for token in fp32, whatever the sizes of the two stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from running_engine import RunningEngine

from tandem.deployment import Kv
from tandem.messages import Partition, Sampling
from tests.checkpoints import make_random_model
from tests.integration.groups.comparisons import assert_equal_everywhere, make_work
from tests.integration.groups.engines import hand_over, run_engines, tokens_of

pytestmark = pytest.mark.alone  # for the memory that so many ranks take

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
