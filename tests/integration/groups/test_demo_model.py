"""The demo model on one rank and on three: the same answers, and the same KV to borrow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.deployment import Kv
from tandem.messages import Partition
from tests.checkpoints import demo_model
from tests.integration.groups.comparisons import assert_equal_everywhere, assert_lent_everywhere, make_work
from tests.integration.groups.engines import run_engines

pytestmark = pytest.mark.alone  # for the memory that so many ranks take

PARTITIONS = {
    "one": Partition(),
    "three": Partition(tensor_parallel_size=3),
    "three_again": Partition(tensor_parallel_size=3),
}


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_the_demo_model_on_one_and_three_ranks(mpi: str, tmp_path: Path) -> None:
    """With prefix caches: from the second time on, prompts are there already."""
    with run_engines(demo_model(), PARTITIONS, mpi, tmp_path, Kv()) as engines:
        assert_equal_everywhere(engines, make_work(40_000, [1, 40, 150], max_tokens=8))
        assert_lent_everywhere(engines)
