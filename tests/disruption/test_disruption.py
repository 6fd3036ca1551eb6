"""Nothing hangs, nothing is lost: parts of a deployment over six hosts are struck under 64 running streams.

``make disruption``; needs root. In every scenario each answer is the undisturbed one, token by token, and its usage
exact; each client has its end within its deadline; then no worker holds a block, handle or lease, and no gateway a
request; and those that were struck have work again.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.disruption.cluster import Cluster
from tests.disruption.faults import FAULTS, Fault, restart_server
from tests.disruption.load import Load, Requests, nothing_left
from tests.disruption.scenario import Row, run_fault, strike


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault(cluster: Cluster, requests: Requests, summary: list[Row], fault: Fault) -> None:
    summary.append(asyncio.run(run_fault(cluster, requests, fault)))


def test_rolling_restart(cluster: Cluster, requests: Requests, summary: list[Row]) -> None:
    """Workers first, one after the other, then the gateways: the other one takes what one refuses."""

    async def run() -> Row:
        began = time.monotonic()
        parts = [(part, n) for part in ("prefill", "decode", "gateway") for n in range(2)]
        async with Load(cluster, requests) as load:
            await load.more_tokens(300)
            for part, number in parts:
                fault = Fault("", "", "", restart_server, part, (number,))
                await strike(cluster, load, fault, fault.hosts(cluster))
        assert not load.wrong, load.wrong[:3]
        await nothing_left(cluster)
        seconds = time.monotonic() - began
        words = "rolling restart", "SIGTERM to each server in turn", "served again"
        return Row(*words, load.done, load.retried, load.slowest, seconds)

    summary.append(asyncio.run(run()))
