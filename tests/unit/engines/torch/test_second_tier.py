"""A whole engine with little memory and a second tier: the same answers, whatever happens to its files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tandem.deployment import Kv
from tandem.engines.torch.engine import create
from tandem.engines.torch.pace import Pace
from tandem.kv.handle import KEY_VARIABLE
from tandem.messages import Finished, Generate, TierLoad
from tests.unit.engines.torch.support import make_deployment, make_model, make_prompts, make_work
from tests.unit.engines.torch.test_engine import KEY, TIMEOUT_S, Harness, as_prefill, end_of, handle_of, tokens_of

BLOCK = 4
TINY = "144KiB"
"""Holds 48 blocks, of which the requests below take 16 each at most."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def work() -> list[Generate]:
    """Ten prompts, three of which go on from another one; twice what fits the memory."""
    prompts = make_prompts(*[37, 41, 30, 44, 28, 39, 33])
    prompts += [prompts[i] + more for i, more in enumerate(make_prompts(9, 5, 13))]
    return [make_work(f"{i}", p, 10, temperature=0.8 * (i % 3 == 2), seed=i) for i, p in enumerate(prompts)]


def start(model: Path, *, block_size: int = BLOCK, prefix_cache: bool = True, **worker: object) -> Harness:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        deployment = make_deployment(model, "float32", block_size, max_batch_size=4, **worker)
        kv = Kv(block_size=block_size, lease_s=TIMEOUT_S, prefix_cache=prefix_cache)
        deployment = msgspec.structs.replace(deployment, kv=kv)
        return Harness(create(deployment, deployment.worker[0], epoch=1, loading=lambda *_: None))


@contextlib.contextmanager
def tiered(model: Path, directory: Path, **options: object) -> Iterator[Harness]:
    """An engine with little memory and files in ``directory``."""
    harness = start(model, **({"kv_memory": TINY, "kv_disk": "8MiB", "kv_disk_path": str(directory)} | options))
    try:
        yield harness
        harness.until_idle()
    finally:
        harness.engine.stop()


@pytest.fixture(scope="module")
def expected(model: Path, work: list[Generate]) -> list[list[int]]:
    """The answers of an engine that keeps nothing."""
    harness = start(model, prefix_cache=False)
    answers = [tokens_of(events) for events in harness.run(list(work))]
    harness.engine.stop()
    return answers


@pytest.fixture
def slow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """This model reads prompts quicker than any file is read; under load only a slower one would read files."""
    monkeypatch.setattr(Pace, "seconds_per_token", 0.01)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.002)


def settle(harness: Harness) -> None:
    """Wait until all is written that is to be given up next."""
    harness.until_idle()
    tier, pool = harness.engine._tier, harness.engine._pool
    until(lambda: not pool.oldest_idle(tier._ahead, tier._store.holds))


def run_one_by_one(harness: Harness, work: list[Generate], name: str) -> tuple[list[list[int]], int]:
    """Answers and cached tokens, with time to write between the requests."""
    answers, cached = [], 0
    for one in work:
        events = harness.run([msgspec.structs.replace(one, request_id=f"{name} {one.request_id}")])[0]
        answers.append(tokens_of(events))
        assert isinstance(events[-1], Finished)
        cached += events[-1].cached_tokens
        settle(harness)
    return answers, cached


def tier_of(harness: Harness) -> TierLoad:
    harness.until_idle()
    return harness.engine._tier.load


def cacheable(work: list[Generate]) -> int:
    return sum((len(w.token_ids) - 1) // BLOCK * BLOCK for w in work)


@pytest.mark.usefixtures("slow_model")
@pytest.mark.parametrize("host", [None, "64KiB"])
def test_what_left_memory_comes_back_and_changes_no_answer(
    model: Path, work: list[Generate], expected: list[list[int]], tmp_path: Path, host: str | None
) -> None:
    """One by one everything is found again; a second process finds it too, and one with another format starts anew."""
    with tiered(model, tmp_path, kv_host=host) as harness:
        assert run_one_by_one(harness, work, "first")[0] == expected
        answers, cached = run_one_by_one(harness, work, "again")
        assert (answers, cached) == (expected, cacheable(work))
        tier = tier_of(harness)
        assert tier.hits > 60
        assert (tier.dropped, tier.corrupt, tier.errors) == (0, 0, 0)
        assert tier.disk_blocks == len(list(tmp_path.glob("prefill_0/*/*"))) > 64
        assert (tier.host_blocks > 20) == (host is not None)
    if host is not None:
        return
    with tiered(model, tmp_path) as harness:
        until(lambda: tier_of(harness).disk_blocks == tier.disk_blocks)
        answers, cached = run_one_by_one(harness, work[:3], "restarted")
        assert answers == expected[:3]
        assert cached == cacheable(work[:3])
    with tiered(model, tmp_path, block_size=8) as harness:
        assert run_one_by_one(harness, work[:3], "other format")[0] == expected[:3]
        assert tier_of(harness).hits == 0


@pytest.mark.usefixtures("slow_model")
def test_prefill_hands_over_what_it_has_read_back(
    model: Path, work: list[Generate], tmp_path: Path, expected: list[list[int]]
) -> None:
    with tiered(model, tmp_path) as harness:
        run_one_by_one(harness, work, "first")
        events = harness.run([as_prefill(work[0])])[0]
        assert handle_of(events)
        assert tokens_of(events) == expected[0][:1]
        assert events[-1].cached_tokens == cacheable(work[:1])
        harness.engine.cancel([work[0].request_id])


class Vandal:
    """Harms files at random while it lives."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._random, self._end = directory, random.Random(1), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.001):
            files = list(self._directory.glob("prefill_0/*/*"))
            for path in self._random.sample(files, len(files) // 4):
                with contextlib.suppress(OSError, ValueError):  # gone, or empty already
                    self._harm(path)

    def _harm(self, path: Path) -> None:
        match self._random.randrange(4):
            case 0:
                path.unlink()
            case 1:
                os.truncate(path, self._random.randrange(path.stat().st_size))
            case 2:
                path.write_bytes(self._random.randbytes(path.stat().st_size))
            case 3:
                with path.open("r+b") as file:
                    file.seek(self._random.randrange(path.stat().st_size))
                    file.write(b"x")


def repeat(harness: Harness, work: list[Generate], rounds: int) -> list[list[int]]:
    """All at once, ``rounds`` times."""
    many = [msgspec.structs.replace(w, request_id=f"round {n} {w.request_id}") for n in range(rounds) for w in work]
    return [tokens_of(events) for events in harness.run(list(many))]


@pytest.mark.usefixtures("slow_model")
def test_harmed_files_change_no_answer(
    model: Path, work: list[Generate], expected: list[list[int]], tmp_path: Path
) -> None:
    with tiered(model, tmp_path) as harness:
        run_one_by_one(harness, work, "first")
        with Vandal(tmp_path):
            for _ in range(20):
                assert repeat(harness, work, 3) == 3 * expected
            end = time.monotonic() + TIMEOUT_S
            while tier_of(harness).corrupt <= 5:  # after an error nothing is written for a while
                assert time.monotonic() < end
                assert repeat(harness, work, 3) == 3 * expected
        shutil.rmtree(tmp_path / "prefill_0")
        assert repeat(harness, work, 2) == 2 * expected
        assert tier_of(harness).hits > 0


@pytest.mark.usefixtures("slow_model")  # that a file is gone is noticed when it would be read
def test_a_full_disk_is_no_error_for_a_request(
    model: Path, work: list[Generate], expected: list[list[int]], tmp_path: Path
) -> None:
    """Each block that was written is gone, and is to be written anew to a device that is full."""
    with tiered(model, tmp_path) as harness:
        run_one_by_one(harness, work, "first")
        for path in tmp_path.glob("prefill_0/*/*"):
            path.unlink()
            path.with_suffix(".part").symlink_to("/dev/full")
        assert repeat(harness, work, 4) == 4 * expected
        until(lambda: tier_of(harness).errors > 0)
        assert repeat(harness, work, 2) == 2 * expected


def test_a_directory_that_is_none_is_no_error_for_a_request(
    model: Path, work: list[Generate], expected: list[list[int]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with tiered(model, tmp_path / "file") as harness:
        assert repeat(harness, work, 2) == 2 * expected
        tier = tier_of(harness)
        assert (tier.errors, tier.disk_blocks, tier.hits) == (1, 0, 0)
        assert tier.dropped > 0


@pytest.mark.usefixtures("slow_model")
def test_a_disk_that_hangs_holds_nobody_up(
    model: Path, work: list[Generate], expected: list[list[int]], tmp_path: Path
) -> None:
    """A pipe that nobody writes to takes the place of a file: to open it waits for ever."""
    with tiered(model, tmp_path) as harness:
        run_one_by_one(harness, work, "first")
        tier = harness.engine._tier
        files = list(tmp_path.glob("prefill_0/*/*"))
        for path in files:
            path.unlink()
            os.mkfifo(path)
        try:
            harness.engine.submit([msgspec.structs.replace(work[3], request_id="torn")])
            until(lambda: tier._reading_since is not None)
            harness.engine.cancel(["torn"])
            assert end_of(harness.wait("torn")) == "cancelled"
            assert repeat(harness, work, 2) == 2 * expected
            assert tier._reading_since is not None
            harness.until_idle()
        finally:
            while tier._waiting:  # lets the reader go on
                for path in files:
                    with contextlib.suppress(OSError):
                        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
