"""The deployments for the recipes say what the recipes say, and docs/outlines/ what the commands print."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from tandem.deployment import Deployment, load_deployment
from tandem.recipes.plan import make_plan
from tandem.recipes.workers import find_difference, llm_arguments, to_yaml
from tests.unit.recipes.support import NAMES, ROOT, recipe


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def load(name: str) -> Deployment:
    return load_deployment(ROOT / "deployments/tensorrt_llm" / f"{name}.toml")


def load_writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write", ROOT / "docs/outlines/write.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_deployment_says_what_its_recipe_says(name: str) -> None:
    found, deployment = recipe(name), load(name)
    assert (deployment.model.path, deployment.model.dtype) == (found.checkpoint, found.dtype)
    assert deployment.model.max_model_len == found.decode.max_seq_len
    assert deployment.kv.block_size == found.tokens_per_block
    for worker in deployment.worker:
        assert find_difference(found, worker) is None
        assert len(worker.hosts or [""]) == found.stage(worker.stage).hosts


def test_a_deployment_names_the_engines_that_a_build_would_make(name: str) -> None:
    plan = make_plan(recipe(name), Path("/engines"))
    built = [worker.tensorrt_llm.engine_dir for worker in plan.workers if worker.tensorrt_llm]
    assert [worker.tensorrt_llm.engine_dir for worker in load(name).worker if worker.tensorrt_llm] == built


def test_workers_do_not_share_gpus(name: str) -> None:
    taken = [
        (worker.host_of(rank), worker.device_of(rank))
        for worker in load(name).worker
        for rank in range(worker.group_size)
    ]
    assert len(taken) == len(set(taken))


def test_a_difference_is_named() -> None:
    worker = load("llama-3.3-70b").worker[1]
    other = msgspec.structs.replace(worker, max_batch_size=4)
    assert find_difference(recipe("llama-3.3-70b"), other) == "max_batch_size: 4: the recipe's is 128"
    assert worker.tensorrt_llm is not None
    section = msgspec.structs.replace(worker.tensorrt_llm, kv_fraction=0.5)
    other = msgspec.structs.replace(worker, tensorrt_llm=section)
    assert find_difference(recipe("llama-3.3-70b"), other) == "tensorrt_llm.kv_fraction: 0.5: the recipe's is 0.9"


def test_what_is_written_reads_back() -> None:
    plan = make_plan(recipe("deepseek-r1"), Path("/engines"))
    assert msgspec.yaml.decode(to_yaml(llm_arguments(plan.recipe, plan.workers[1]))) == llm_arguments(
        plan.recipe, plan.workers[1]
    )
    written = msgspec.toml.decode(plan.worker_text)
    assert msgspec.convert(written["worker"], list[type(plan.workers[0])]) == plan.workers


def test_a_worker_over_two_hosts_counts_the_gpus_of_one() -> None:
    plan = make_plan(recipe("llama-3.3-70b"), Path("/engines"))
    assert [llm_arguments(plan.recipe, worker)["gpus_per_node"] for worker in plan.workers] == [4, 4]


def test_the_pages_are_what_the_commands_print(name: str) -> None:
    """Else: python docs/outlines/write.py"""
    assert (ROOT / "docs/outlines" / f"{name}.md").read_text() == load_writer().outline(name)
