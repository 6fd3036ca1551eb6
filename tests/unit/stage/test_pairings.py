"""For whom an engine remembers its peers."""

from __future__ import annotations

from tandem.stage.pairings import Pairings


def test_a_peer_stays_as_long_as_any_lane_wants_it() -> None:
    pairings = Pairings()
    for lane in ("a", "b", "a"):
        pairings.add(lane, "decode_0")
    assert not pairings.remove("a", "decode_0")
    assert not pairings.remove("a", "decode_0")
    assert pairings.remove("b", "decode_0")
    assert not pairings.remove("b", "decode_0")


def test_with_a_lane_go_the_peers_that_only_it_wanted() -> None:
    pairings = Pairings()
    pairings.add("a", "decode_0")
    pairings.add("a", "decode_1")
    pairings.add("b", "decode_1")
    assert pairings.remove_lane("a") == ["decode_0"]
    assert pairings.remove_lane("a") == []
    pairings.clear()
    assert pairings.remove_lane("b") == []
