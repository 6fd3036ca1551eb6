"""Which trace a request belongs to, by W3C's rules."""

from __future__ import annotations

import pytest

from tandem.tracing.context import TraceContext, parse_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_traceparent_is_read_and_written() -> None:
    for flags, sampled in (("00", False), ("01", True)):
        context = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}")
        assert context == TraceContext(TRACE, SPAN, sampled)
        assert str(context) == f"00-{TRACE}-{SPAN}-{flags}"
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-03") == TraceContext(TRACE, SPAN, True)
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-will-be") == TraceContext(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
    ],
)
def test_what_is_none_is_no_error(text: str) -> None:
    assert parse_traceparent(text) is None
