"""The deployment file: read whole, or refused with the field, its value's place and what was expected."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.deployment import Deployment, Model, Server, Worker, load_deployment, override, split_parts, to_json
from tandem.errors import TandemError

MINIMAL = """
name = "d"
[model]
path = "models/tiny"
[[worker]]
name = "prefill_0"
stage = "prefill"
[[worker]]
name = "decode_0"
stage = "decode"
"""

REPOSITORY = Path(__file__).parents[3]


def load(directory: Path, text: str) -> Deployment:
    path = directory / "d.toml"
    path.write_text(text)
    return load_deployment(path)


def refusal(directory: Path, text: str) -> str:
    with pytest.raises(TandemError) as caught:
        load(directory, text)
    assert caught.value.code == "invalid_request"
    assert "d.toml" in caught.value.message
    return caught.value.message


def test_the_local_deployment_is_one_worker_of_each_stage() -> None:
    deployment = load_deployment(REPOSITORY / "deployments" / "local.toml")
    assert [(w.name, w.stage) for w in deployment.worker] == [("prefill_0", "prefill"), ("decode_0", "decode")]
    assert (deployment.server.http_port, deployment.server.grpc_port, deployment.server.metrics_port) == (
        8000,
        8001,
        8002,
    )
    assert deployment.server.host == "127.0.0.1"


def test_the_deployment_over_several_hosts_can_be_read() -> None:
    deployment = load_deployment(REPOSITORY / "deployments" / "multi_host.toml")
    assert [(w.group_size, len(w.hosts)) for w in deployment.worker] == [(3, 3), (2, 2)]
    assert deployment.parallel.launch_agent == "ssh"


def test_the_second_tier_lies_relative_to_the_file(tmp_path: Path) -> None:
    tier = 'kv_host = "4GiB"\nkv_disk = "8MiB"\nkv_disk_path = "cache"\ndevices = ["cuda:0"]'
    _, decode = load(tmp_path, MINIMAL + tier).worker
    assert (decode.kv_host_bytes, decode.kv_disk_bytes) == (4 << 30, 8 << 20)
    assert decode.kv_disk_path == str(tmp_path / "cache")


def test_model_path_is_relative_to_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).model.path == str(tmp_path / "models" / "tiny")
    absolute = MINIMAL.replace("models/tiny", "/somewhere/tiny")
    assert load(tmp_path, absolute).model.path == "/somewhere/tiny"


def test_resolved_copy_is_read_back_as_it_was(tmp_path: Path) -> None:
    deployment = load(tmp_path, MINIMAL)
    copy = tmp_path / "elsewhere.json"
    copy.write_bytes(to_json(deployment))
    assert load_deployment(copy) == deployment


def test_the_deployment_over_three_hosts_is_a_gateway_where_nothing_else_is_said() -> None:
    deployment = load_deployment(REPOSITORY / "deployments" / "three_hosts.toml")
    assert deployment.is_spread
    assert (deployment.has_gateway, deployment.workers_here) == (True, [])
    part = override(deployment, only=split_parts("prefill_0"))
    assert (part.has_gateway, [w.name for w in part.workers_here]) == (False, ["prefill_0"])
    both = override(deployment, only=split_parts("gateway, decode_0"))
    assert (both.has_gateway, [w.name for w in both.workers_here]) == (True, ["decode_0"])
    with pytest.raises(
        TandemError, match="'decode_9' is no part of the deployment; it has gateway, prefill_0, decode_0"
    ):
        override(deployment, only=["decode_9"])


def test_workers_of_other_servers_do_not_share_this_ones_cores(tmp_path: Path) -> None:
    alone = load(tmp_path, MINIMAL.replace('stage = "decode"', 'stage = "decode"\naddress = "far:8001"'))
    first, second = alone.worker
    assert alone.threads_of(first) == override(alone, only=["decode_0"]).threads_of(second) == os.cpu_count()


def test_workers_for_both_stages_are_enough(tmp_path: Path) -> None:
    text = MINIMAL.replace('stage = "prefill"', 'stage = "both"').replace('stage = "decode"', 'stage = "both"')
    deployment = load(tmp_path, text)
    assert deployment.workers("prefill") == deployment.workers("decode") == deployment.worker


@pytest.mark.parametrize(
    ("line", "replacement", "expected"),
    [
        ('name = "d"', "", ["`name`"]),
        ('name = "d"', 'name = "D d"', ["name: 'D d': "]),
        ('path = "models/tiny"', "", ["model: ", "`path`"]),
        ('path = "models/tiny"', 'path = "m"\ndtype = "int8"', ["model.dtype: 'int8': "]),
        ('path = "models/tiny"', 'path = "m"\nmax_model_len = 0', ["model.max_model_len: 0: ", ">= 1"]),
        ('stage = "prefill"', 'stage = "read"', ["worker[0].stage: 'read': "]),
        ('stage = "decode"', 'stage = "decode"\nthread = 2', ["worker[1]: ", "`thread`"]),
        ('stage = "decode"', 'stage = "decode"\nthreads = "2"', ["worker[1].threads: '2': ", "`int", "`str`"]),
        ('stage = "prefill"', 'stage = "prefill"\nkv_memory = "1GB"', ["worker[0].kv_memory: '1GB': ", "GiB"]),
        ('stage = "prefill"', 'stage = "prefill"\ndevices = ["gpu"]', ["worker[0].devices[0]: 'gpu': ", "cpu|cuda"]),
        ('stage = "prefill"', 'stage = "prefill"\ndevices = []', ["worker[0].devices: ", ">= 1"]),
        ('stage = "prefill"', 'stage = "prefill"\ntensor_parallel_size = 0', ["worker[0].tensor_parallel_size: 0: "]),
        ('stage = "prefill"', 'stage = "prefill"\nhosts = ["a b"]', ["worker[0].hosts[0]: 'a b': "]),
        (
            'stage = "decode"',
            'stage = "decode"\ntensor_parallel_size = 3\ndevices = ["cuda:0", "cuda:1"]',
            ["worker[1].devices: 2 devices for 3 ranks"],
        ),
        (
            'stage = "decode"',
            'stage = "decode"\npipeline_parallel_size = 3\nhosts = ["a", "b"]',
            ["worker[1].hosts: 2 hosts for 3 ranks"],
        ),
        (
            'stage = "decode"',
            'stage = "decode"\ntensor_parallel_size = 2\nhosts = ["a", "a"]',
            ["worker[1].hosts: 'a' stands twice"],
        ),
        ("[model]", '[parallel]\nmpi = "lam"\n[model]', ["parallel.mpi: 'lam': "]),
        ("[model]", '[parallel]\nsubnet = "10.0.0.0"\n[model]', ["parallel.subnet: '10.0.0.0': "]),
        ("[model]", "[parallel]\nhang_timeout_s = 0.0\n[model]", ["parallel.hang_timeout_s: 0.0: ", "> 0"]),
        ("[model]", "[server]\nhttp_port = 70000\n[model]", ["server.http_port: 70000: ", "<= 65535"]),
        ("[model]", "[kv]\nlease_s = 0.0\n[model]", ["kv.lease_s: 0.0: ", "> 0"]),
        ("[model]", "model = 3\n[mode]", ["model: 3: "]),
        ("[model]", '[routing]\npolicy = "best"\n[model]', ["routing.policy: 'best': "]),
        ("[model]", "[routing]\nspread = 1.5\n[model]", ["routing.spread: 1.5: ", "<= 1"]),
        ("[model]", "[routing]\nseed = 1\n[model]", ["routing: ", "`seed`"]),
        ("[model]", "[speed]\nfast = true\n[model]", ["`speed`"]),
        ('name = "decode_0"', 'name = "prefill_0"', ["worker.name", "'prefill_0'", "twice"]),
        ('name = "decode_0"', 'name = "llm"', ["worker.name", "'llm'"]),
        ('name = "decode_0"', 'name = "gateway"', ["worker.name", "'gateway'"]),
        ('stage = "decode"', 'stage = "decode"\naddress = "host"', ["worker[1].address: 'host': "]),
        (
            'stage = "decode"',
            'stage = "decode"\naddress = ["http://host:1"]',
            ["worker[1].address[0]: 'http://host:1': "],
        ),
        (
            "[model]",
            '[server]\nonly = ["decode"]\n[model]',
            ["server.only: 'decode' is no part", "gateway, prefill_0, d"],
        ),
        ("[model]", '[server]\nonly = ["gateway"]\n[model]', ["worker.address: is missing for 'prefill_0'"]),
        ('stage = "prefill"', 'stage = "decode"', ['stage = "prefill"']),
        ('stage = "decode"', 'stage = "prefill"', ['stage = "decode"']),
        ("[model]", "[model", ["d.toml"]),
        ('stage = "decode"', 'stage = "decode"\nengine = "sim"', ["worker[1].profile: is missing", "instant"]),
        (
            'stage = "decode"',
            'stage = "decode"\nengine = "sim"\nprofile = "h1000"',
            ["worker[1].profile: 'h1000' is none of a100-llama-3.1-8b", "h100-llama-3.1-8b, ", "instant"],
        ),
        ('stage = "decode"', 'stage = "decode"\nprofile = "instant"', ["worker[1].profile: ", "'torch'"]),
        ('stage = "decode"', 'stage = "decode"\nkv_disk = "8GB"', ["worker[1].kv_disk: '8GB': "]),
        ('stage = "decode"', 'stage = "decode"\nkv_disk = "8GiB"', ["worker[1].kv_disk_path: is missing"]),
        ('stage = "decode"', 'stage = "decode"\nkv_disk_path = "d"', ["worker[1].kv_disk: is missing"]),
        ('stage = "decode"', 'stage = "decode"\nkv_host = "1GiB"', ["worker[1].kv_host: '1GiB': ", "CPU worker"]),
        (
            'stage = "decode"',
            'stage = "decode"\ntensor_parallel_size = 2\nkv_disk = "8GiB"\nkv_disk_path = "d"',
            ["worker[1].kv_disk: '8GiB': a group of 2 ranks"],
        ),
        (
            'stage = "decode"',
            'stage = "decode"\nengine = "sim"\nprofile = "instant"\nkv_disk = "8GiB"\nkv_disk_path = "d"',
            ["worker[1].kv_disk: '8GiB': ", "'sim'"],
        ),
        (
            'stage = "decode"',
            'stage = "decode"\nkv_disk = "8GiB"\nkv_disk_path = "d"\n[kv]\nprefix_cache = false',
            ["worker[1].kv_disk: '8GiB': needs kv.prefix_cache = true"],
        ),
        ('stage = "decode"', 'stage = "decode"\nfaults = { pull_share = 0.1 }', ["worker[1].faults: ", "'torch'"]),
        *(
            ('stage = "decode"', f'stage = "decode"\nengine = "sim"\nprofile = "instant"\n{line}', expected)
            for line, expected in [
                ("timing = { token = 1.0 }", ["worker[1].timing: 'token' is none of overhead_s, "]),
                ("timing = { token_s = -1.0 }", ["worker[1].timing.token_s: -1.0: must be finite and at least 0"]),
                ("timing = { token_s = inf }", ["worker[1].timing.token_s: inf: must be finite and"]),
                ("timing = { transfer_bytes_per_s = 0.0 }", ["worker[1].timing.transfer_bytes_per_s: 0.0"]),
                ("faults = { pull_share = 1.5 }", ["worker[1].faults.pull_share: 1.5: ", "<= 1"]),
                ("faults = { crash = 1 }", ["worker[1].faults: ", "`crash`"]),
                ("tensor_parallel_size = 2", ["worker[1].tensor_parallel_size", "sim"]),
            ]
        ),
    ],
)
def test_refusals_name_the_field(tmp_path: Path, line: str, replacement: str, expected: list[str]) -> None:
    assert line in MINIMAL
    message = refusal(tmp_path, MINIMAL.replace(line, replacement, 1))
    for text in expected:
        assert text in message


def test_a_simulated_worker_is_read_whole(tmp_path: Path) -> None:
    text = MINIMAL + 'engine = "sim"\nprofile = "instant"\ntiming = { overhead_s = 0.5 }\nfaults = { crash_after = 3 }'
    deployment = load(tmp_path, text)
    worker = deployment.worker[1]
    assert (worker.engine, worker.profile, worker.timing) == ("sim", "instant", {"overhead_s": 0.5})
    assert worker.faults.crash_after == 3
    copy = tmp_path / "copy.json"
    copy.write_bytes(to_json(deployment))
    assert load_deployment(copy) == deployment


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match=r"cannot read the deployment file .*absent\.toml: No such file"):
        load_deployment(tmp_path / "absent.toml")


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TandemError, match=r"d\.toml"):
        load_deployment(path)


def test_override_replaces_only_what_is_given() -> None:
    deployment = Deployment(name="d", model=Model(path="m"), worker=[], server=Server(http_port=1, grpc_port=2))
    changed = override(deployment, http_port=0, grpc_port=None, host="0.0.0.0")
    assert changed.server == Server(host="0.0.0.0", http_port=0, grpc_port=2)
    assert deployment.server.http_port == 1


@given(st.integers(1, 10_000), st.sampled_from([("KiB", 10), ("MiB", 20), ("GiB", 30)]))
def test_kv_memory_in_bytes(number: int, unit: tuple[str, int]) -> None:
    worker = Worker(name="w", stage="decode", kv_memory=f"{number}{unit[0]}")
    assert worker.kv_bytes == number * 2 ** unit[1]


def test_cores_are_shared_out_evenly_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    workers = [Worker(name="a", stage="prefill"), Worker(name="b", stage="decode", threads=5)]
    deployment = Deployment(name="d", model=Model(path="m"), worker=workers)
    assert [deployment.threads_of(worker) for worker in workers] == [3, 5]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert deployment.threads_of(workers[0]) == 1


def test_cores_are_shared_by_the_ranks_of_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    spread = Worker(name="a", stage="prefill", tensor_parallel_size=2, pipeline_parallel_size=2, hosts=["x", "y"])
    other = Worker(name="b", stage="decode", tensor_parallel_size=2, hosts=["x", "z"])
    deployment = Deployment(name="d", model=Model(path="m"), worker=[spread, other])
    assert [deployment.threads_of(spread, rank) for rank in range(4)] == [4, 4, 6, 6]
    assert [deployment.threads_of(other, rank) for rank in range(2)] == [4, 12]


def test_ranks_are_spread_over_the_hosts_in_order() -> None:
    worker = Worker(name="w", stage="decode", tensor_parallel_size=6, hosts=["x", "y", "z"], devices=["cuda"])
    assert [worker.host_of(rank) for rank in range(6)] == [None, None, "y", "y", "z", "z"]
    assert {worker.device_of(rank) for rank in range(6)} == {"cuda"}
    each = Worker(name="w", stage="decode", tensor_parallel_size=2, devices=["cuda:0", "cuda:1"])
    assert [each.device_of(rank) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert [each.host_of(rank) for rank in range(2)] == [None, None]


def test_group_has_a_rank_for_each_shard_of_each_stage() -> None:
    worker = Worker(name="w", stage="decode", tensor_parallel_size=3, pipeline_parallel_size=2)
    assert worker.group_size == 6
    assert (worker.partition.tensor_parallel_size, worker.partition.pipeline_parallel_size) == (3, 2)
    assert Worker(name="w", stage="decode").group_size == 1


def test_workers_are_found_by_name_and_stage(tmp_path: Path) -> None:
    deployment = load(tmp_path, MINIMAL)
    assert [w.name for w in deployment.workers("decode")] == ["decode_0"]
    assert deployment.find_worker("prefill_0").stage == "prefill"
    with pytest.raises(TandemError, match="'decode_7' is not in the deployment; it has prefill_0, decode_0") as caught:
        deployment.find_worker("decode_7")
    assert caught.value.code == "not_found"


def test_sections_are_immutable(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        load(tmp_path, MINIMAL).model.path = "x"  # type: ignore[misc]
    assert msgspec.json.decode(to_json(load(tmp_path, MINIMAL)))["kv"]["block_size"] == 16


TENSORRT_LLM = MINIMAL.replace(
    'stage = "prefill"', 'stage = "prefill"\nengine = "tensorrt_llm"\ndevices = ["cuda:0"]\n[worker.tensorrt_llm]\n%s'
)


def test_a_worker_of_tensorrt_llm_has_a_section_of_its_own(tmp_path: Path) -> None:
    section = 'engine_dir = "built"\nlora = [{ task_id = 1, path = "adapters/one" }]\nkv_fraction = 0.8'
    worker = load(tmp_path, TENSORRT_LLM % section).worker[0]
    assert worker.tensorrt_llm is not None
    assert worker.tensorrt_llm.engine_dir == str(tmp_path / "built")
    assert worker.tensorrt_llm.lora[0].path == str(tmp_path / "adapters" / "one")
    assert worker.tensorrt_llm.cache_transceiver == "NIXL"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TENSORRT_LLM.replace("cuda:0", "cpu") % "", "worker[0].devices: 'cpu': engine = \"tensorrt_llm\" needs GPUs"),
        (TENSORRT_LLM % 'cache_transceiver = "MPI"', "worker[0].tensorrt_llm.cache_transceiver: 'MPI': Invalid enum"),
        (TENSORRT_LLM % "kv_fraction = 1.0", "worker[0].tensorrt_llm.kv_fraction: 1.0: Expected `float` < 1.0"),
        (TENSORRT_LLM % "expert_parallel_size = 2", "expert_parallel_size: 2: must divide tensor_parallel_size, 1"),
        (
            TENSORRT_LLM % "stall_timeout_s = 40",
            "stall_timeout_s: 40: must be above kv.lease_s +",
        ),
        (TENSORRT_LLM % "" + "[kv]\nblock_size = 24", "kv.block_size: 24: TensorRT-LLM's blocks hold a power of two"),
        (
            TENSORRT_LLM % 'lora = [{ task_id = 1, path = "a" }, { task_id = 1, path = "b" }]',
            "worker[0].tensorrt_llm.lora.task_id: 1 stands twice",
        ),
        (
            MINIMAL + "[worker.tensorrt_llm]\nkv_fraction = 0.5",
            "worker[1].tensorrt_llm: is for engine = \"tensorrt_llm\", but the engine is 'torch'",
        ),
    ],
)
def test_wrong_fields_of_tensorrt_llm_are_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)
