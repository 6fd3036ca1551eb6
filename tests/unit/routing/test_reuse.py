"""How likely blocks are asked for again."""

from __future__ import annotations

import pytest

from tandem.kv.hashes import pack_hashes
from tandem.messages import BlocksRemoved, BlocksStored, KvEvent, KvReport
from tandem.routing.index import PrefixIndex
from tandem.routing.reuse import REFRESH_S, Reuse


@pytest.fixture
def reuse() -> Reuse:
    """Of three workers. Of ten blocks four were found, 20 s old."""
    reuse = Reuse()
    for _ in range(3):
        reuse.add()
    reuse.placed(10, 4, 20.0)
    return reuse


def test_the_longer_ago_a_block_was_used_the_less_it_is_worth(reuse: Reuse) -> None:
    reuse.evicted(0, 100.0)
    reuse.evicted(1, 60.0)
    assert reuse.chances(100.0).tolist() == pytest.approx([0.4, 0.4 / 3, 0.0])
    assert reuse.chances(120.0).tolist() == pytest.approx([0.4 / 2, 0.4 / 4, 0.0])


def test_an_empty_cache_has_nothing_to_lose(reuse: Reuse) -> None:
    reuse.evicted(0, 100.0)
    reuse.begin(0)
    assert reuse.chances(100.0).tolist() == [0.0, 0.0, 0.0]


def test_where_nothing_was_ever_found_nothing_is_worth_keeping() -> None:
    reuse = Reuse()
    reuse.add()
    reuse.placed(10, 0, 0.0)
    reuse.evicted(0, 5.0)
    assert reuse.chances(5.0).tolist() == [0.0]


def test_old_requests_are_forgotten(reuse: Reuse) -> None:
    for _ in range(10_000):
        reuse.placed(10, 1, 50.0)
    reuse.evicted(0, 0.0)
    assert reuse.chances(50.0)[0] == pytest.approx(0.05, rel=0.01)


def test_an_index_knows_how_old_the_blocks_are_that_its_workers_gave_up() -> None:
    """Both stored the same; the second was asked for it later, and so gave up younger blocks."""
    index, chain = PrefixIndex(), [1, 2, 3, 4]
    for place in range(2):
        index.add()
        index.begin(place, 1)
        index.take(place, 1, _report(1, BlocksStored(hashes=chain)))
    for now, place in ((10.0, 0), (30.0, 1)):
        index.expire(now)
        index.give(place, pack_hashes([*chain, 5]), 4, now, now + 1)
    for place in range(2):
        index.take(place, 1, _report(2, BlocksRemoved(hashes=[4, 3])))
    index.expire(40.0 + REFRESH_S)
    first, second = index.chances()
    assert 0.0 < first < second < 0.8


def test_blocks_that_another_worker_keeps_do_not_tell_how_long_others_stay() -> None:
    index = _asked_once()
    index.take(0, 1, _report(2, BlocksRemoved(hashes=[2], spare=True)))
    index.expire(50.0)
    assert index.chances().tolist() == [0.0]
    assert index.held(pack_hashes([1, 2])).counts.tolist() == [1]


def test_a_snapshot_does_not_make_blocks_young() -> None:
    index = _asked_once()
    index.expire(50.0)
    index.take(0, 1, KvReport(first=7, events=[BlocksStored(hashes=[1, 2])], is_snapshot=True))
    index.take(0, 1, _report(8, BlocksRemoved(hashes=[2])))
    assert index.chances().tolist() == pytest.approx([1.0 / (1 + 40 / 10)])


def _asked_once() -> PrefixIndex:
    """Of a worker that holds two blocks, which were asked for at 10 s."""
    index = PrefixIndex()
    index.add()
    index.begin(0, 1)
    index.take(0, 1, _report(1, BlocksStored(hashes=[1, 2])))
    index.expire(10.0)
    index.give(0, pack_hashes([1, 2]), 2, 10.0, 11.0)
    return index


def _report(first: int, event: KvEvent) -> KvReport:
    return KvReport(first=first, events=[event])
