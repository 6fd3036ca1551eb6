"""The library's KV events as Tandem's names."""

from __future__ import annotations

from typing import Any

from tandem.engines.tensorrt_llm.names import BlockNames
from tandem.kv.hashes import hash_blocks
from tandem.messages import BlocksRemoved, BlocksStored, KvEvent

PROMPT = list(range(20))
NAMES = hash_blocks(PROMPT, 4)


def stored(number: int, parent: int | None, *blocks: tuple[int, list[int]], window: int = 64) -> dict[str, Any]:
    listed = [{"block_hash": each, "tokens": [{"token_id": t} for t in tokens]} for each, tokens in blocks]
    return {
        "event_id": number,
        "window_size": window,
        "data": {"type": "stored", "parent_hash": parent, "blocks": listed},
    }


def removed(number: int, *hashes: int, window: int = 64) -> dict[str, Any]:
    return {"event_id": number, "window_size": window, "data": {"type": "removed", "block_hashes": list(hashes)}}


def take(names: BlockNames, *events: dict[str, Any]) -> list[KvEvent]:
    return [change for event in events for change in names.take(event)]


def test_chains_are_named_by_their_tokens() -> None:
    names = BlockNames(4)
    assert take(names, {"event_id": 0, "data": {"type": "created", "num_blocks_per_cache_level": [9, 0]}}) == []
    assert take(names, stored(1, None, (71, PROMPT[:4]), (72, PROMPT[4:8]))) == [BlocksStored(hashes=NAMES[:2])]
    assert take(names, stored(2, 72, (73, PROMPT[8:12]))) == [BlocksStored(hashes=NAMES[2:3])]
    assert take(names, removed(3, 73)) == [BlocksRemoved(hashes=NAMES[2:3])]
    assert (len(names), NAMES[1] in names, NAMES[2] in names) == (2, True, False)


def test_what_is_not_whole_or_follows_the_unknown_has_no_name() -> None:
    names = BlockNames(4)
    assert take(names, stored(0, None, (1, PROMPT[:4]), (2, PROMPT[4:7]))) == [BlocksStored(hashes=NAMES[:1])]
    assert take(names, stored(1, 99, (3, PROMPT[8:12]))) == []
    assert take(names, removed(2, 2, 3)) == []


def test_a_name_is_gone_with_the_last_block_that_has_it() -> None:
    """The same tokens in two attention windows are two blocks."""
    names = BlockNames(4)
    assert take(names, stored(0, None, (1, PROMPT[:4]))) == [BlocksStored(hashes=NAMES[:1])]
    assert take(names, stored(1, None, (1, PROMPT[:4]), window=16)) == []
    assert take(names, removed(2, 1)) == []
    assert take(names, removed(3, 1, window=16)) == [BlocksRemoved(hashes=NAMES[:1])]


def test_lost_events_make_it_forget_all() -> None:
    names = BlockNames(4)
    take(names, stored(0, None, (1, PROMPT[:4]), (2, PROMPT[4:8])))
    changes = take(names, removed(5, 1))
    assert [sorted(c.hashes) for c in changes] == [sorted(NAMES[:2])]
    assert len(names) == 0
    assert take(names, stored(6, None, (1, PROMPT[:4]))) == [BlocksStored(hashes=NAMES[:1])]


def test_salted_blocks_have_names_of_their_own() -> None:
    """Events do not tell the salt; the request that began so did."""
    names = BlockNames(4)
    names.expect(PROMPT, "tenant")
    salted = hash_blocks(PROMPT, 4, "tenant")
    assert take(names, stored(0, None, (1, PROMPT[:4]), (2, PROMPT[4:8]))) == [BlocksStored(hashes=salted[:2])]
    names.expect(PROMPT, "")
    assert take(names, stored(1, None, (3, PROMPT[:4]))) == [BlocksStored(hashes=NAMES[:1])]
