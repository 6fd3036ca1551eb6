"""Answers as tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tandem.api.answer import Facts, Piece, facts_tensors, piece_tensors
from tandem.messages import TokenLogprob


def test_a_piece_is_its_text_and_its_tokens() -> None:
    tensors = piece_tensors(Piece(text="Grüße 🌍", token_ids=[3, 4]))
    assert set(tensors) == {"text_output", "output_ids"}
    assert tensors["text_output"].item() == "Grüße 🌍".encode()
    assert tensors["output_ids"].tolist() == [[3, 4]]
    assert tensors["output_ids"].dtype == np.int32


def test_a_piece_without_tokens_has_a_tensor_of_none() -> None:
    assert piece_tensors(Piece(text="", token_ids=[]))["output_ids"].shape == (1, 0)


def test_log_probabilities_come_where_they_were_asked_for() -> None:
    entries = [TokenLogprob(logprob=-0.5, top=[(3, -0.5), (9, -1.5)]), TokenLogprob(logprob=-2.0)]
    tensors = piece_tensors(Piece(text="ab", token_ids=[3, 4], logprobs=entries))
    assert tensors["output_log_probs"].tolist() == [[-0.5, -2.0]]
    assert json.loads(tensors["top_log_probs"].item()) == [[[3, -0.5], [9, -1.5]], []]


def test_every_fact_has_a_tensor_of_its_name() -> None:
    facts = Facts(
        finish_reason="length",
        num_input_tokens=7,
        num_output_tokens=5,
        num_cached_tokens=2,
        ttft_ms=12.5,
        prefill_worker="prefill_0",
        decode_worker="decode_1",
        kv_bytes=5 << 30,
        kv_transfer_ms=0.25,
        route="prefill on prefill_0",
        trace_id="0af7651916cd43dd8448eb211c80319c",
    )
    tensors = facts_tensors(facts)
    for name in Facts.__struct_fields__:
        value = tensors[name].item()
        assert (value.decode() if isinstance(value, bytes) else value) == pytest.approx(getattr(facts, name))
        assert tensors[name].shape == (1, 1)
