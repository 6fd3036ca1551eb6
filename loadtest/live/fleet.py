"""Deployments of simulated workers for a live server, on free ports."""

from __future__ import annotations

from pathlib import Path

import msgspec

from live.engines import MOST_STEP_TOKENS, SimEngine
from tandem.deployment import Deployment, Kv, Limits, Model, Routing, Server, Worker

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".tandem" / "models" / "smollm2-135m-instruct"
"""Of which only tokenizer and vocabulary are used."""


def sim_deployment(
    prefill: int, decode: int, engine: SimEngine, routing: Routing, *, block_size: int = 16, most_requests: int = 1024
) -> Deployment:
    """``prefill`` and ``decode`` workers of the engine ``sim``. Nobody is refused until there are ``most_requests``."""
    workers = [
        Worker(
            name=f"{stage}_{number}",
            stage=stage,  # type: ignore[arg-type]
            engine="sim",
            profile=engine.profile,
            timing=_finite(msgspec.structs.asdict(timing)),
            kv_memory=f"{engine.kv_bytes >> 20}MiB",
            max_batch_size=512,
            max_batch_tokens=MOST_STEP_TOKENS,
            max_queue=most_requests,
        )
        for stage, count, timing in (("prefill", prefill, engine.prefill), ("decode", decode, engine.decode))
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


def _finite(timing: dict[str, float]) -> dict[str, float]:
    """Infinite speeds are left to the profile: a deployment file has no word for them."""
    return {name: value for name, value in timing.items() if value != float("inf")}
