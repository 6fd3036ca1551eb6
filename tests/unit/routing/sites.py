"""Workers for routing tests: a router or a table with workers that are there, paired, and have been measured."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tandem.deployment import Routing
from tandem.kv.hashes import pack_hashes
from tandem.messages import BlocksStored, KvFormat, KvReport, Load, StageName, WorkerInfo
from tandem.routing.cost import Costs, Request, weigh
from tandem.routing.disaggregation import NOBODY_WAITS, Waiting
from tandem.routing.router import Plan, Router
from tandem.routing.speeds import KNEE_TOKENS
from tandem.routing.table import WorkerTable

BLOCK = 16
BLOCKS = 1000
"""KV blocks of each worker."""
BATCH = 32
PREFILL_S = 0.001
MORE_S = PREFILL_S * 100 / (100 + KNEE_TOKENS)
"""Per token that a prefill step reads more than these, which all read 100."""
STEP_S = 0.02
KV = KvFormat(
    fingerprint="f",
    dtype="bfloat16",
    layout="l",
    block_size=BLOCK,
    num_layers=2,
    num_kv_heads=2,
    slice_bytes=250_000,
)
"""One MB a block."""
PULL_S = 1e-9
"""Per byte: a block takes 1 ms."""


def measured(**fields: Any) -> Load:
    """The load of an idle worker that has been measured; ``fields`` replace some of it."""
    given: dict[str, Any] = {
        "blocks_total": BLOCKS,
        "steps": 110,
        "step_seconds": 1000 * PREFILL_S + 100 * STEP_S,
        "prefill_steps": 10,
        "prefill_tokens": 1000,
        "prefill_seconds": 1000 * PREFILL_S,
        "bytes_pulled": 10**9,
        "pull_seconds": 10**9 * PULL_S,
    }
    return Load(**given | fields)


def info(name: str, stage: StageName, epoch: int = 1) -> WorkerInfo:
    return WorkerInfo(
        worker_id=name,
        epoch=epoch,
        stage=stage,
        engine="torch",
        kv=KV,
        vocab_size=1000,
        max_model_len=100_000,
        max_batch_size=BATCH,
    )


def make_router(each: int = 2, seed: int = 1, **routing: Any) -> Router:
    """A router of ``each`` prefill and decode workers, all idle and paired."""
    router = Router(Routing(**routing), BLOCK, seed)
    stages: tuple[StageName, StageName] = ("prefill", "decode")
    for stage in stages:
        for number in range(each):
            router.add(f"{stage}_{number}", stage)
    for stage in stages:
        for number in range(each):
            join(router, f"{stage}_{number}", stage)
    for one in range(each):
        for other in range(each):
            router.pair(f"prefill_{one}", f"decode_{other}")
    return router


def join(router: Router, name: str, stage: StageName, epoch: int = 1) -> None:
    router.join(name, info(name, stage, epoch), measured())


def stored(router: Router, worker: str, hashes: list[int], first: int = 1, **fields: Any) -> None:
    """A worker reports that it holds these blocks."""
    router.report(worker, 1, measured(**fields), KvReport(first=first, events=[BlocksStored(hashes=hashes)]))


def ask(
    router: Router,
    hashes: list[int],
    *,
    tokens: int | None = None,
    answer: int = 50,
    now: float = 0.0,
    waiting: Waiting = NOBODY_WAITS,
    avoid: Collection[str] = (),
) -> Plan:
    """Plan a prompt of these blocks and one token more."""
    num_tokens = len(hashes) * BLOCK + 1 if tokens is None else tokens
    return router.plan(pack_hashes(hashes), num_tokens, answer, now, waiting=waiting, avoid=avoid)


def make_table(each: int = 1) -> WorkerTable:
    """Places 0 to each - 1 are prefill workers, the others decode workers."""
    table = WorkerTable()
    for number in range(2 * each):
        stage: StageName = "prefill" if number < each else "decode"
        table.join(table.add(f"{stage}_{number % each}", stage), BATCH, measured())
    for one in range(each):
        for other in range(each, 2 * each):
            table.pair(one, other)
    return table


def make_costs(
    table: WorkerTable,
    *,
    tokens: int = 160,
    answer: int = 50,
    cached: dict[int, int] | None = None,
    chances: dict[int, float] | None = None,
    **lent: Any,
) -> Costs:
    """Of a prompt of which some places have some tokens cached, some of which give up blocks that may be asked for."""
    held = np.zeros(len(table.names))
    for place, count in (cached or {}).items():
        held[place] = count
    lost = np.zeros(len(table.names))
    for place, chance in (chances or {}).items():
        lost[place] = chance
    blocks = -(-tokens // BLOCK)
    request = Request(
        num_tokens=tokens,
        answer_tokens=answer,
        prompt_blocks=blocks,
        all_blocks=-(-(tokens + answer) // BLOCK),
        block_size=1,
        held=held,
        chances=lost,
        **lent,
    )
    return weigh(table, request)
