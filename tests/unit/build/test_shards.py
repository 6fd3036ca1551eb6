"""One file for each rank: what the rank would have cut out of the whole, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conversion.shards import write_shard
from tandem.engines.torch.checkpoint import Checkpoint, shard_file
from tandem.engines.torch.config import read_config
from tandem.engines.torch.sharding import Shard
from tandem.errors import TandemError
from tandem.messages import Partition
from tests.checkpoints import make_random_model

SPLITS = [Partition(tensor_parallel_size=4), Partition(tensor_parallel_size=2, pipeline_parallel_size=2)]


@pytest.fixture(scope="module", params=["llama_biased", "qwen3"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(request.param, tmp_path_factory.mktemp(request.param), num_hidden_layers=3)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no iterator


@pytest.mark.parametrize("partition", SPLITS)
def test_a_ranks_file_has_its_part(model_dir: Path, partition: Partition) -> None:
    whole = shapes(model_dir / "model.safetensors")
    config, device = read_config(model_dir), torch.device("cpu")
    cut = [Checkpoint(model_dir, Shard(config, partition, r), torch.float32, device) for r in range(partition.size)]
    for rank, reference in enumerate(cut):
        assert write_shard(model_dir, partition, rank) == shard_file(model_dir, partition, rank)
        shard = Shard(config, partition, rank)
        own = Checkpoint(model_dir, shard, torch.float32, device)
        assert set(shapes(shard_file(model_dir, partition, rank))) == {name for name in whole if shard.holds(name)}
        for name in filter(shard.holds, whole):
            assert torch.equal(own.read(name, whole[name]), reference.read(name, whole[name]))


def test_the_second_time_nothing_is_written(model_dir: Path) -> None:
    partition = SPLITS[0]
    path = write_shard(model_dir, partition, 1)
    before = path.stat().st_ino
    assert write_shard(model_dir, partition, 1).stat().st_ino == before
    path.write_bytes(b"torn")
    assert shapes(write_shard(model_dir, partition, 1))


def test_what_was_cut_from_another_model_is_refused(tmp_path: Path) -> None:
    first, second = (make_random_model("llama", tmp_path / str(seed), seed=seed) for seed in (1, 2))
    partition = Partition(tensor_parallel_size=2)
    theirs, ours = write_shard(first, partition, 1), shard_file(second, partition, 1)
    ours.parent.mkdir(parents=True)
    theirs.rename(ours)
    with pytest.raises(TandemError, match=r"rank-1\.safetensors was cut from model .* run build/shard\.py again"):
        Checkpoint(second, Shard(read_config(second), partition, 1), torch.float32, torch.device("cpu"))


def test_a_split_that_does_not_divide_is_refused(model_dir: Path) -> None:
    with pytest.raises(TandemError, match="give one of 1, 2, 4"):
        write_shard(model_dir, Partition(tensor_parallel_size=3), 0)
