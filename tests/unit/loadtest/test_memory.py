"""The soak's verdict on memory: a steady loss is found under noise, and noise alone is none."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from asyncio import create_task, run, sleep
from dataclasses import dataclass

import pytest
from memory import LEAST_SAMPLES, Sample, judge, judge_all, watch_memory

MIB = 1 << 20
REQUESTS = 10_000


def _samples(bytes_per_request: float, noise: int = MIB // 2) -> list[Sample]:
    """60 MiB, filled over the first third of a round, then the given loss under noise."""
    draw = random.Random(1)
    return [
        (done, int(min(60, 20 + done / 80) * MIB + done * bytes_per_request) + draw.randint(-noise, noise))
        for done in range(0, REQUESTS + 1, 50)
    ]


@pytest.mark.parametrize("lost", [0, -500, 40])
def test_noise_after_a_warm_up_is_flat(lost: float) -> None:
    memory = judge(_samples(lost), REQUESTS)
    assert memory is not None
    assert memory.flat
    assert memory.bytes_per_request == pytest.approx(lost, abs=60)


@pytest.mark.parametrize("lost", [300, 3_700])
def test_a_steady_loss_is_not(lost: float) -> None:
    memory = judge(_samples(lost), REQUESTS)
    assert memory is not None
    assert not memory.flat
    assert memory.bytes_per_request == pytest.approx(lost, abs=60)


def test_too_few_samples_are_no_verdict() -> None:
    samples = [(REQUESTS // 2 + number, 60 * MIB) for number in range(LEAST_SAMPLES)]
    assert judge(samples, REQUESTS) is not None
    assert judge(samples[1:], REQUESTS) is None
    assert judge([(REQUESTS, 60 * MIB)] * 100, REQUESTS) is None, "no request passed meanwhile"


def test_only_processes_that_lived_to_the_end_are_judged() -> None:
    whole = _samples(0)
    verdicts = judge_all({"server": whole, "gone": whole[:-1], "restarted": whole[-3:]}, REQUESTS)
    assert set(verdicts) == {"server", "restarted"}
    assert verdicts["server"] is not None
    assert verdicts["restarted"] is None


@dataclass
class _Work:
    done: int = 7


def test_every_child_is_watched() -> None:
    samples: dict[str, list[Sample]] = {}

    async def look(name_ends_with: str) -> None:
        task = create_task(watch_memory(samples, _Work()))
        deadline = time.monotonic() + 10
        while not any(name.endswith(name_ends_with) for name in samples) and time.monotonic() < deadline:
            await sleep(0.01)
        task.cancel()

    child = subprocess.Popen([sys.executable, "-c", "input()", "--worker", "prefill_7"], stdin=subprocess.PIPE)
    try:
        run(look(f"engine prefill_7 {child.pid}"))
    finally:
        child.kill()
        child.communicate()
    done, resident = samples[f"engine prefill_7 {child.pid}"][0]
    assert done == 7
    assert resident > MIB // 2
