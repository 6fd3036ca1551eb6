"""Deployments of simulated workers for a live server, on free ports."""

from __future__ import annotations

from pathlib import Path

from tandem.deployment import Deployment, Kv, Limits, Model, Routing, Server, Worker
from tandem.engines.sim.profiles import find_profile
from tandem.engines.sim.timing import Timing

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".tandem" / "models" / "smollm2-135m-instruct"
"""Of which only tokenizer and vocabulary are used."""


def sped_up(timing: Timing, speed: float) -> dict[str, float]:
    """What makes a worker ``speed`` times as fast, ready at once; fields of ``Timing`` for a deployment."""
    times = ("overhead_s", "weights_s", "token_s", "pair_s", "context_s", "transfer_latency_s")
    faster = {name: getattr(timing, name) / speed for name in times}
    if timing.transfer_bytes_per_s != float("inf"):
        faster["transfer_bytes_per_s"] = timing.transfer_bytes_per_s * speed
    return {**faster, "start_s": 0.0}


def sim_deployment(
    prefill: int,
    decode: int,
    *,
    profile: str,
    routing: Routing,
    speed: float = 1.0,
    block_size: int = 16,
    most_requests: int = 1024,
) -> Deployment:
    """``prefill`` and ``decode`` workers of the engine ``sim``, with the KV memory of their profile. Nobody is refused
    until there are ``most_requests``."""
    found = find_profile(profile)
    workers = [
        Worker(
            name=f"{stage}_{number}",
            stage=stage,  # type: ignore[arg-type]
            engine="sim",
            profile=profile,
            timing=sped_up(found.timing, speed),
            kv_memory=f"{found.kv_bytes >> 20}MiB",
            max_batch_size=512,
            max_batch_tokens=8192,
            max_queue=most_requests,
        )
        for stage, count in (("prefill", prefill), ("decode", decode))
        for number in range(count)
    ]
    return Deployment(
        name="load",
        model=Model(path=str(MODEL)),
        worker=workers,
        server=Server(http_port=0, grpc_port=0, metrics_port=0),
        limits=Limits(max_requests=most_requests, request_timeout_s=600.0),
        kv=Kv(block_size=block_size),
        routing=routing,
    )
