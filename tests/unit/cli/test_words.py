"""How the commands put facts into words."""

import pytest

from tandem.cli.generate import summary
from tandem.cli.terminal import count, size

FACTS = {
    "finish_reason": "stop",
    "num_input_tokens": 1,
    "num_output_tokens": 1200,
    "num_cached_tokens": 0,
    "ttft_ms": 41.4,
    "prefill_worker": "prefill_0",
    "decode_worker": "decode_1",
    "kv_bytes": 3 << 20,
    "kv_transfer_ms": 2.34,
}


def test_summary_says_every_fact_once() -> None:
    assert summary(FACTS) == (
        "finished: stop · 1 prompt token (0 cached) · 1,200 generated · first after 41 ms · "
        "prefill_0 → decode_1 · 3.0 MiB KV moved in 2.3 ms"
    )


def test_summary_of_an_answer_that_one_worker_gave() -> None:
    alone = FACTS | {"prefill_worker": "", "kv_bytes": 0, "kv_transfer_ms": 0.0}
    assert summary(alone).endswith(" · decode_1 · no KV moved")
    both = FACTS | {"prefill_worker": "decode_1", "kv_bytes": 0}
    assert summary(both).endswith(" · decode_1 · no KV moved")


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (150 << 20, "150 MiB"), (3 << 40, "3.0 TiB")],
)
def test_size(num_bytes: int, words: str) -> None:
    assert size(num_bytes) == words


def test_count() -> None:
    assert [count(n, "token") for n in (0, 1, 2000)] == ["0 tokens", "1 token", "2,000 tokens"]
