"""How engine processes are told to copy."""

from __future__ import annotations

import pytest

from tandem.kv.copying import PAST_CACHES_BYTES, THRESHOLD, VARIABLE, add_copying

OURS = f"{THRESHOLD}={PAST_CACHES_BYTES:#x}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OURS),
        ({VARIABLE: ""}, OURS),
        ({VARIABLE: "glibc.malloc.check=3"}, f"glibc.malloc.check=3:{OURS}"),
        ({VARIABLE: f"{THRESHOLD}=0x100000"}, f"{THRESHOLD}=0x100000"),
    ],
)
def test_what_is_set_already_stays(given: dict[str, str], expected: str) -> None:
    assert add_copying({"HOME": "/", **given}) == {"HOME": "/", VARIABLE: expected}
