"""Who can take a request, and who only answers."""

from __future__ import annotations

from tandem.cli.status import _problem, _row
from tandem.messages import HelloReply, Load, Refused
from tests.unit.routing.sites import info


def test_an_engine_that_gives_no_sign_of_life_is_named() -> None:
    stopped = HelloReply(worker=info("decode_0", "decode"), load=Load(silent_s=7.2))
    assert _row("decode_0", stopped) == ["decode_0", "[red]its engine has given no sign of life for 7 s[/red]"]


def test_a_worker_that_starts_cannot_take_a_request() -> None:
    assert _problem(Refused(code="worker_lost", message="is starting")) == "is starting"


def test_a_worker_that_works_is_shown_with_its_load() -> None:
    reply = HelloReply(worker=info("decode_0", "decode"), load=Load(running=3, silent_s=0.4))
    assert _problem(reply) is None
    assert "3/32" in _row("decode_0", reply)
