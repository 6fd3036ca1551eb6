"""The rules that span fields."""

from __future__ import annotations

import math
from pathlib import Path

from tandem.deployment.deployment import Deployment
from tandem.deployment.engines import Faults, TensorRtLlm
from tandem.deployment.kv import Kv
from tandem.deployment.server import GATEWAY
from tandem.deployment.worker import Worker
from tandem.engines.sim.profiles import find_profile
from tandem.engines.sim.timing import Timing
from tandem.errors import TandemError


def check(path: Path, deployment: Deployment) -> None:
    """The rules that span fields."""
    names = [w.name for w in deployment.worker]
    problem: str | None = None
    if duplicate := next((n for n in names if names.count(n) > 1), None):
        problem = f"worker.name: {duplicate!r} stands twice; names must differ"
    elif reserved := next((n for n in names if n in ("llm", "ensemble", "preprocess", GATEWAY)), None):
        problem = f"worker.name: {reserved!r} is the name of what Tandem adds; choose another"
    elif not deployment.workers("prefill"):
        problem = 'worker: no worker has stage = "prefill" or "both"; add one'
    elif not deployment.workers("decode"):
        problem = 'worker: no worker has stage = "decode" or "both"; add one'
    else:
        places = [(f"worker[{i}]", w) for i, w in enumerate(deployment.worker)]
        cached = deployment.kv.prefix_cache
        found = (
            _find_misplaced(place, w)
            or _find_sim_problem(place, w)
            or _find_trtllm_problem(place, w, deployment.kv)
            or _find_tier_problem(place, w, cached)
            for place, w in places
        )
        problem = next(filter(None, found), None) or find_part_problem(deployment)
    if problem:
        raise TandemError("invalid_request", f"{path}: {problem}")


def find_part_problem(deployment: Deployment) -> str | None:
    """What is wrong with what is to run here."""
    known = [GATEWAY, *(w.name for w in deployment.worker)]
    if unknown := next((part for part in deployment.server.only if part not in known), None):
        return f"server.only: {unknown!r} is no part of the deployment; it has {', '.join(known)}"
    if not deployment.has_gateway:
        return None
    here = deployment.parts_here
    if lost := next((w.name for w in deployment.worker if not w.address and w.name not in here), None):
        return f"worker.address: is missing for {lost!r}, which the gateway here could not reach; give its host:port"
    return None


def _find_misplaced(place: str, worker: Worker) -> str | None:
    """What is wrong with where a worker's ranks are to run."""
    ranks, hosts, devices = worker.group_size, worker.hosts, worker.devices
    if len(devices) not in (1, ranks):
        return f"{place}.devices: {len(devices)} devices for {ranks} ranks; give one for all, or one for each"
    if hosts and ranks % len(hosts):
        return f"{place}.hosts: {len(hosts)} hosts for {ranks} ranks; give as many as divide the ranks evenly"
    if duplicate := next((h for h in hosts if hosts.count(h) > 1), None):
        return f"{place}.hosts: {duplicate!r} stands twice; every host has its ranks in one run"
    return None


def _find_sim_problem(place: str, worker: Worker) -> str | None:
    """What is wrong with the fields of the engine ``sim``."""
    if worker.engine != "sim":
        given = {"profile": worker.profile, "timing": worker.timing, "faults": worker.faults}
        idle = next((name for name, value in given.items() if value not in (None, {}, Faults())), None)
        return f'{place}.{idle}: is for engine = "sim", but the engine is {worker.engine!r}' if idle else None
    if worker.profile is None:
        return f'{place}.profile: is missing; engine = "sim" needs one, as "instant"'
    try:
        find_profile(worker.profile)
    except TandemError as error:
        return f"{place}.{error.message}"
    if unknown := next((name for name in worker.timing if name not in Timing.__struct_fields__), None):
        return f"{place}.timing: {unknown!r} is none of {', '.join(Timing.__struct_fields__)}"
    if wrong := next((name for name, value in worker.timing.items() if not 0 <= value < math.inf), None):
        return f"{place}.timing.{wrong}: {worker.timing[wrong]}: must be finite and at least 0"
    if worker.timing.get("transfer_bytes_per_s") == 0:
        return f"{place}.timing.transfer_bytes_per_s: 0.0: must be above 0"
    if worker.group_size > 1:
        return f'{place}.tensor_parallel_size: the engine "sim" is one process; its profile says how many GPUs it is'
    return None


def _find_tier_problem(place: str, worker: Worker, prefix_cache: bool) -> str | None:
    """What is wrong with where KV blocks go that have no room in memory."""
    given = next((name for name in ("kv_host", "kv_disk", "kv_disk_path") if getattr(worker, name) is not None), None)
    if given is None:
        return None
    what = f"{place}.{given}: {getattr(worker, given)!r}:"
    if worker.engine != "torch":
        return f'{what} is for engine = "torch", but the engine is {worker.engine!r}'
    if worker.group_size > 1:
        return f"{what} a group of {worker.group_size} ranks keeps its KV in memory alone; leave it out"
    if not prefix_cache:
        return f"{what} needs kv.prefix_cache = true; it holds blocks of that cache"
    if worker.kv_host and not worker.device_of(0).startswith("cuda"):
        return f"{what} the KV of a CPU worker is in the host's memory already; raise kv_memory"
    if bool(worker.kv_disk) != bool(worker.kv_disk_path):
        missing = "kv_disk_path" if worker.kv_disk else "kv_disk"
        return f"{place}.{missing}: is missing; kv_disk and kv_disk_path go together"
    return None


def _find_trtllm_problem(place: str, worker: Worker, kv: Kv) -> str | None:
    """What is wrong with the fields of the engine ``tensorrt_llm``."""
    if worker.engine != "tensorrt_llm":
        given = worker.tensorrt_llm is not None
        return (
            f'{place}.tensorrt_llm: is for engine = "tensorrt_llm", but the engine is {worker.engine!r}' * given or None
        )
    section, tensor = worker.tensorrt_llm or TensorRtLlm(), worker.tensor_parallel_size
    if wrong := next((d for d in worker.devices if not d.startswith("cuda")), None):
        return f'{place}.devices: {wrong!r}: engine = "tensorrt_llm" needs GPUs, as "cuda:0"'
    each = worker.group_size // max(1, len(worker.hosts))
    for first in range(0, worker.group_size, each):
        here = {worker.device_of(rank) for rank in range(first, first + each)}
        if len(here) != each:
            return f"{place}.devices: {len(here)} GPUs for {each} ranks of a host; give one for each"
    if kv.block_size & (kv.block_size - 1):
        return f"kv.block_size: {kv.block_size}: TensorRT-LLM's blocks hold a power of two"
    if tensor % section.expert_parallel_size:
        size = section.expert_parallel_size
        return f"{place}.tensorrt_llm.expert_parallel_size: {size}: must divide tensor_parallel_size, {tensor}"
    ids = [adapter.task_id for adapter in section.lora]
    if duplicate := next((i for i in ids if ids.count(i) > 1), None):
        return f"{place}.tensorrt_llm.lora.task_id: {duplicate} stands twice"
    longest = kv.lease_s + kv.transfer_timeout_s
    if section.stall_timeout_s <= longest:
        return (
            f"{place}.tensorrt_llm.stall_timeout_s: {section.stall_timeout_s:g}: must be above kv.lease_s + "
            f"kv.transfer_timeout_s, {longest:g}, for which requests may have to wait for room"
        )
    return None
