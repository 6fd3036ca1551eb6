"""The stages on their own: a plain KServe client carries the KV handle itself, and cannot misuse it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem.keys import Keys
from tandem.kv.handle import sign
from tandem.lanes.seal import seal
from tandem.messages import Hello, KvHandle, Partition, encode
from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask_now, post

TOKENS = 12


@pytest.fixture(scope="module")
def prompt(server: TritonServer) -> list[int]:
    return TextCodec(Path(server.deployment.model.path)).encode("The quick brown fox jumps over the lazy dog. " * 4)


def prefill(server: TritonServer, prompt: list[int]) -> Answer:
    answer = ask_now(server.grpc_url, "prefill_0", {"input_ids": prompt, "max_tokens": TOKENS})
    assert answer.error is None
    assert len(answer.output_ids) == 1
    return answer


def decode(server: TritonServer, prompt: list[int], first: list[int], handle: str, **more: Any) -> Answer:
    inputs = {"input_ids": prompt, "output_ids": first, "kv_handle": handle, "max_tokens": TOKENS}
    return ask_now(server.grpc_url, "decode_0", inputs | more)


def test_a_handle_carried_by_hand_gives_the_orchestrators_answer(server: TritonServer, prompt: list[int]) -> None:
    whole = ask_now(server.grpc_url, "llm", {"input_ids": prompt, "max_tokens": TOKENS})
    first = prefill(server, prompt)
    rest = decode(server, prompt, first.output_ids, first.facts["kv_handle"], stream=True)
    assert first.output_ids + rest.output_ids == whole.output_ids
    assert rest.facts["kv_bytes"] > 0
    assert rest.facts["num_output_tokens"] == TOKENS


def test_decode_without_a_handle_does_the_whole_request(server: TritonServer, prompt: list[int]) -> None:
    whole = ask_now(server.grpc_url, "llm", {"input_ids": prompt, "max_tokens": TOKENS})
    alone = ask_now(server.grpc_url, "decode_0", {"input_ids": prompt, "max_tokens": TOKENS, "stream": True})
    assert alone.output_ids == whole.output_ids


def test_a_handle_is_redeemed_once(server: TritonServer, prompt: list[int]) -> None:
    first = prefill(server, prompt)
    assert decode(server, prompt, first.output_ids, first.facts["kv_handle"]).error is None
    again = decode(server, prompt, first.output_ids, first.facts["kv_handle"])
    assert again.error is not None
    assert "[handle_used]" in again.error


def resigned(change: Callable[[KvHandle], KvHandle], key: bytes) -> Callable[[bytes], bytes]:
    from tandem.kv.handle import verify

    keys = Keys([key])
    return lambda data: sign(change(verify(data, keys)), keys)


def kv(**fields: Any) -> Callable[[KvHandle], KvHandle]:
    return lambda handle: msgspec.structs.replace(handle, kv=msgspec.structs.replace(handle.kv, **fields))


def top(**fields: Any) -> Callable[[KvHandle], KvHandle]:
    return lambda handle: msgspec.structs.replace(handle, **fields)


MISUSES: list[tuple[str, Callable[[KvHandle], KvHandle]]] = [
    ("handle_fingerprint", kv(fingerprint="another model")),
    ("handle_dtype", kv(dtype="float8")),
    ("handle_layout", kv(layout="another layout")),
    ("handle_block_size", kv(block_size=7)),
    ("handle_partition", top(partition=Partition(tensor_parallel_size=2))),
    ("handle_stale_epoch", top(epoch=1)),
    ("handle_unknown_worker", top(worker_id="prefill_9")),
    ("lease_unknown", top(lease_id=2**40)),
]


@pytest.mark.parametrize(("code", "change"), MISUSES, ids=[code for code, _ in MISUSES])
def test_a_handle_that_does_not_fit_is_refused_with_its_own_error(
    server: TritonServer, handle_key: bytes, prompt: list[int], code: str, change: Callable[[KvHandle], KvHandle]
) -> None:
    first = prefill(server, prompt)
    data = resigned(change, handle_key)(base64.b64decode(first.facts["kv_handle"]))
    answer = decode(server, prompt, first.output_ids, base64.b64encode(data).decode())
    assert answer.error is not None
    assert f"[{code}]" in answer.error


def test_a_handle_of_another_prompt_is_refused(server: TritonServer, prompt: list[int]) -> None:
    first = prefill(server, prompt)
    answer = decode(server, [*prompt[:-1], prompt[-1] + 1], first.output_ids, first.facts["kv_handle"])
    assert answer.error is not None
    assert "[handle_tokens]" in answer.error


def test_forged_cut_and_garbled_handles_are_refused(server: TritonServer, prompt: list[int]) -> None:
    first = prefill(server, prompt)
    data = base64.b64decode(first.facts["kv_handle"])
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    for handle, code in (
        (base64.b64encode(flipped).decode(), "handle_forged"),
        (base64.b64encode(data[:20]).decode(), "handle_malformed"),
        ("not base64 at all!", "handle_malformed"),
        ("", "handle_malformed"),
    ):
        answer = decode(server, prompt, first.output_ids, handle)
        assert answer.error is not None
        assert f"[{code}]" in answer.error
    assert decode(server, prompt, first.output_ids, first.facts["kv_handle"]).error is None


def test_a_lane_message_that_is_none_is_refused(server: TritonServer) -> None:
    import numpy as np

    answer = ask_now(server.grpc_url, "decode_0", {"lane_request": np.zeros((1, 9), np.uint8)})
    assert answer.error is not None
    assert "[forbidden] lane_request" in answer.error


def test_lane_messages_without_the_key_or_for_another_worker_are_refused(
    server: TritonServer, handle_key: bytes
) -> None:
    import numpy as np

    hello = encode(Hello())
    good = seal(hello, "decode_0", Keys([handle_key]))
    for data in (hello, seal(hello, "decode_0", Keys([bytes(32)])), seal(hello, "prefill_0", Keys([handle_key]))):
        answer = ask_now(server.grpc_url, "decode_0", {"lane_request": np.frombuffer(data, np.uint8)[None]})
        assert answer.error is not None
        assert "[forbidden] lane_request" in answer.error
    assert ask_now(server.grpc_url, "decode_0", {"lane_request": np.frombuffer(good, np.uint8)[None]}).error is None


def test_management_of_the_server_needs_the_key(server: TritonServer) -> None:
    for path in ("repository/index", "repository/models/llm/unload", "systemsharedmemory/status", "logging"):
        status, text = post(f"{server.http_url}/v2/{path}", {})
        assert status >= 400, path
        assert "restricted" in text, path
