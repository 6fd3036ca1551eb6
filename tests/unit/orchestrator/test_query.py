"""What a request asks of the router."""

import pytest

from tandem.kv.hashes import hash_chain
from tandem.orchestrator import query


def test_the_names_of_its_blocks_are_made_once_and_not_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(query, "hash_chain", lambda *what: made.append(what) or hash_chain(*what))
    asked = query.Query(list(range(40)), 8, 16, "acme")
    assert (asked.num_tokens, asked.max_tokens, made) == (40, 8, [])
    assert [asked.hashes.tolist() for _ in range(3)] == [hash_chain(range(40), 16, "acme").tolist()] * 3
    assert len(made) == 1
