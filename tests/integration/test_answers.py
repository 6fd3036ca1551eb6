"""What clients get from a running deployment: through every door, with every kind of prompt."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask_now, generate, generate_stream, post

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
MESSAGES = json.dumps(QUESTION)


@pytest.fixture(scope="module")
def codec(server: TritonServer) -> TextCodec:
    return TextCodec(Path(server.deployment.model.path))


def check_facts(answer: Answer, prompt_tokens: int) -> None:
    """The final response tells the whole story of a request that went through both stages."""
    facts = answer.facts
    assert facts["num_input_tokens"] == prompt_tokens
    assert facts["num_output_tokens"] == len(answer.output_ids)
    assert facts["num_cached_tokens"] in range(0, prompt_tokens, 16)
    assert facts["prefill_worker"] == "prefill_0"
    assert facts["decode_worker"] == "decode_0"
    assert facts["ttft_ms"] > 0
    assert facts["kv_transfer_ms"] > 0
    assert facts["kv_bytes"] > 0


def test_grpc_streams_the_capital_of_france(server: TritonServer, codec: TextCodec) -> None:
    answer = ask_now(server.grpc_url, "llm", {"messages": MESSAGES, "stream": True, "max_tokens": 40})
    assert answer.error is None
    assert "Paris" in answer.text
    assert len(answer.pieces) > 3
    assert answer.facts["finish_reason"] == "stop"
    check_facts(answer, len(codec.encode_chat(QUESTION)))


def test_without_stream_there_is_one_response(server: TritonServer, codec: TextCodec) -> None:
    answer = ask_now(server.grpc_url, "llm", {"messages": MESSAGES, "max_tokens": 40})
    assert len(answer.pieces) == 1
    assert "Paris" in answer.text
    check_facts(answer, len(codec.encode_chat(QUESTION)))


def test_every_door_gives_the_same_answer(server: TritonServer) -> None:
    body = {"text_input": "The sun rises in the", "max_tokens": 12}
    whole = generate(server.http_url, "llm", body)
    events = generate_stream(server.http_url, "llm", body | {"stream": True})
    streamed = "".join(event.get("text_output", "") for event in events)
    by_grpc = ask_now(server.grpc_url, "llm", body | {"stream": True})
    by_ensemble = ask_now(server.grpc_url, "ensemble", body | {"stream": True})
    assert whole["text_output"] == streamed == by_grpc.text == by_ensemble.text
    assert whole["num_output_tokens"] == events[-1]["num_output_tokens"] == len(by_grpc.output_ids)
    assert by_ensemble.facts["finish_reason"] == by_grpc.facts["finish_reason"]


def test_token_ids_are_a_prompt_like_their_text(server: TritonServer, codec: TextCodec) -> None:
    text = "Once upon a time"
    by_text = ask_now(server.grpc_url, "llm", {"text_input": text, "max_tokens": 8})
    by_ids = ask_now(server.grpc_url, "llm", {"input_ids": codec.encode(text), "max_tokens": 8})
    assert by_text.output_ids == by_ids.output_ids


def test_the_answer_ends_at_max_tokens(server: TritonServer) -> None:
    for max_tokens in (1, 2, 7):
        answer = ask_now(server.grpc_url, "llm", {"text_input": "1 2 3 4", "max_tokens": max_tokens, "stream": True})
        assert len(answer.output_ids) == max_tokens
        assert answer.facts["finish_reason"] == "length"


def test_a_stop_word_ends_the_answer_before_it(server: TritonServer) -> None:
    free = ask_now(server.grpc_url, "llm", {"messages": MESSAGES, "max_tokens": 40})
    stopped = ask_now(server.grpc_url, "llm", {"messages": MESSAGES, "max_tokens": 40, "stop_words": ["of France"]})
    assert "of France" in free.text
    assert stopped.text == free.text[: free.text.index("of France")]
    assert stopped.facts["finish_reason"] == "stop"


def test_min_tokens_holds_the_end_of_text_back(server: TritonServer) -> None:
    answer = ask_now(server.grpc_url, "llm", {"messages": MESSAGES, "max_tokens": 60, "min_tokens": 50})
    assert len(answer.output_ids) >= 50


def test_log_probabilities_come_with_the_tokens(server: TritonServer) -> None:
    answer = ask_now(
        server.grpc_url,
        "llm",
        {"text_input": "Two plus two is", "max_tokens": 5, "stream": True, "return_log_probs": True},
    )
    log_probs = answer.facts["output_log_probs"]
    assert len(log_probs) == len(answer.output_ids) == 5
    assert all(value <= 0.0 for value in log_probs)


@pytest.mark.parametrize(
    "text",
    ["Write 🌍🚀👩‍👩‍👧‍👦 again: 🌍🚀", "把这句话翻译成英文：你好，世界", "e\u0301a\u0308o\u0302 n\u0303 हिन्दी ก็"],
)
def test_streamed_pieces_join_to_the_text_decoded_whole(server: TritonServer, codec: TextCodec, text: str) -> None:
    """Random sampling over the whole vocabulary makes characters fall apart over tokens."""
    for seed in range(4):
        answer = ask_now(
            server.grpc_url,
            "llm",
            {"text_input": text, "max_tokens": 48, "temperature": 3.0, "seed": seed, "stream": True},
        )
        assert answer.error is None
        assert answer.text == codec.decode(answer.output_ids)


def test_metrics_show_up_on_tritons_own_page(server: TritonServer) -> None:
    ask_now(server.grpc_url, "llm", {"text_input": "Hello", "max_tokens": 4})
    wanted = {
        "tandem_kv_blocks_cached",
        "tandem_kv_blocks_free",
        "tandem_kv_blocks_used",
        "tandem_queue_length",
        "tandem_running_requests",
        "tandem_kv_handles_held",
        "tandem_kv_handles_granted_total",
        "tandem_kv_transfer_bytes_total",
        "tandem_kv_transfer_seconds_bucket",
        "tandem_ttft_seconds_bucket",
        "tandem_inter_token_seconds_bucket",
        "tandem_requests_total",
    }
    deadline = time.monotonic() + 20
    missing = wanted
    while missing and time.monotonic() < deadline:
        page = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
        missing = {name for name in wanted if f"\n{name}{{" not in page and f"\n{name} " not in page}
        time.sleep(0.2)
    assert not missing


def test_bad_requests_are_answered_and_the_server_lives_on(server: TritonServer) -> None:
    cases = [
        ({"max_tokens": 4}, "exactly one of text_input"),
        ({"text_input": ""}, "text_input: the prompt is empty"),
        ({"text_input": "x", "max_tokens": 0}, "max_tokens: 0; expected 1 to"),
        ({"text_input": "x", "max_tokens": -3}, "max_tokens: -3; expected 1 to"),
        ({"text_input": "x", "max_tokens": 100_000}, "max_tokens: 100000; after a prompt of"),
        ({"text_input": "x", "temperature": -1.0}, "temperature: -1; expected"),
        ({"text_input": "x", "stop_words": [""]}, "stop_words[0]"),
        ({"text_input": "x", "temprature": 1.0}, "temprature: unknown parameter"),
        ({"text_input": "word " * 9000, "max_tokens": 4}, "prompt: 9"),
        ({"text_input": "a" * 10_000_000, "max_tokens": 4}, "text_input: 10000000 bytes"),
        ({"input_ids": [10**6], "max_tokens": 4}, "input_ids[0]: 1000000 is no token id"),
        ({"text_input": ["a", "b"]}, "batch-size must be <= 1"),
    ]
    for body, said in cases:
        status, text = post(f"{server.http_url}/v2/models/llm/generate", body)
        assert status == 400, (str(body)[:80], status, text)
        assert said in text, (str(body)[:80], text)
    for raw in (b"{not json", b"", b"\xff\xfe", b'{"text_input": "x", "max_tokens": "many"}'):
        status, _ = post(f"{server.http_url}/v2/models/llm/generate", raw)  # refused by Triton's own JSON reader
        assert status in (400, 500)
    wrong_dtype = ask_now(server.grpc_url, "llm", {"text_input": "x", "max_tokens": np.array([[2.5]], np.float32)})
    assert "'max_tokens' data-type is 'FP32'" in (wrong_dtype.error or "")
    wrong_shape = ask_now(server.grpc_url, "llm", {"text_input": "x", "max_tokens": np.zeros((3, 1), np.int32)})
    assert "max_tokens" in (wrong_shape.error or "") or "batch" in (wrong_shape.error or "")
    nan = ask_now(server.grpc_url, "llm", {"text_input": "x", "temperature": float("nan")})
    assert nan.error is not None
    assert "temperature: nan" in nan.error
    garbled = ask_now(server.grpc_url, "llm", {"text_input": b"\xf0\x9f\x92", "max_tokens": 2})
    assert garbled.error is not None
    assert "not valid UTF-8" in garbled.error
    assert "Paris" in generate(server.http_url, "llm", {"messages": MESSAGES, "max_tokens": 40})["text_output"]
