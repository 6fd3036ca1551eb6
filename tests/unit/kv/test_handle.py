"""The handle: nothing but the very bytes that were signed is accepted, and every mismatch has its own code."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import TandemError
from tandem.keys import Keys, mac
from tandem.kv import handle as kv_handle
from tandem.kv.handle import check, digest_tokens, require_compatible, sign, verify
from tandem.messages import (
    HeldBlocks,
    HeldByLibrary,
    KvFormat,
    KvHandle,
    LibraryTransfer,
    Partition,
    TransferInfo,
    WorkerInfo,
)

KEY = bytes(range(32))
KEYS = Keys([KEY])
TOKENS = [5, 6, 7, 49151, 0]
KV = KvFormat(
    fingerprint="f" * 32,
    dtype="bfloat16",
    layout="head-major-v2",
    block_size=2,
    num_layers=4,
    num_kv_heads=2,
    slice_bytes=8,
)
TWO = Partition(tensor_parallel_size=2)


def transfer(**changes: Any) -> TransferInfo:
    fields = {"agent_name": "prefill_0-4d", "agent_metadata": b"", "address": 4096, "block_bytes": 64, "num_blocks": 9}
    return TransferInfo(**{**fields, **changes})


def worker(worker_id: str, **changes: Any) -> WorkerInfo:
    fields: dict[str, Any] = {
        "worker_id": worker_id,
        "epoch": 77,
        "stage": "prefill",
        "engine": "torch",
        "kv": KV,
        "vocab_size": 49152,
        "max_model_len": 128,
        "max_batch_size": 4,
        "transfers": [transfer(agent_name=f"{worker_id}-4d")],
    }
    return WorkerInfo(**{**fields, **changes})


def spread(worker_id: str, **changes: Any) -> WorkerInfo:
    """A worker of two ranks."""
    ranks = [transfer(agent_name=f"{worker_id}-4d{rank}", block_bytes=32) for rank in ("", "-1")]
    fields: dict[str, Any] = {"partition": TWO, "transfers": ranks}
    return worker(worker_id, **{**fields, **changes})


PREFILL = worker("prefill_0")
DECODE = worker("decode_0", epoch=5, stage="decode")


def make(**changes: Any) -> KvHandle:
    fields: dict[str, Any] = {
        "version": kv_handle.HANDLE_VERSION,
        "worker_id": "prefill_0",
        "epoch": 77,
        "lease_id": 3,
        "kv": KV,
        "partition": Partition(),
        "num_tokens": len(TOKENS),
        "tokens_digest": digest_tokens(TOKENS),
        "held": HeldBlocks(block_ids=[4, 5, 8]),
    }
    return KvHandle(**{**fields, **changes})


def code_of(data: bytes, key: bytes = KEY) -> str:
    with pytest.raises(TandemError) as error:
        verify(data, Keys([key]))
    return error.value.code


handles = st.builds(
    KvHandle,
    version=st.just(kv_handle.HANDLE_VERSION),
    worker_id=st.text(max_size=8),
    epoch=st.integers(0, 2**63 - 1),
    lease_id=st.integers(0, 2**63 - 1),
    kv=st.builds(
        KvFormat,
        fingerprint=st.text(max_size=8),
        dtype=st.text(max_size=8),
        layout=st.text(max_size=8),
        block_size=st.integers(1, 256),
        num_layers=st.integers(1, 99),
        num_kv_heads=st.integers(1, 99),
        slice_bytes=st.integers(1, 2**20),
    ),
    partition=st.builds(Partition, tensor_parallel_size=st.integers(1, 8), pipeline_parallel_size=st.integers(1, 8)),
    num_tokens=st.integers(0, 2**31),
    tokens_digest=st.binary(max_size=32),
    held=st.builds(HeldBlocks, block_ids=st.lists(st.integers(0, 2**31), max_size=8))
    | st.builds(
        HeldByLibrary,
        context_request_id=st.integers(0, 2**63 - 1),
        opaque_state=st.binary(max_size=32),
        first_token_ids=st.lists(st.integers(0, 2**31), max_size=2),
    ),
)


@given(handle=handles, key=st.binary(min_size=32, max_size=32))
def test_what_was_signed_comes_back(handle: KvHandle, key: bytes) -> None:
    assert verify(sign(handle, Keys([key])), Keys([key])) == handle


@given(handle=handles, other=st.binary(min_size=32, max_size=32).filter(lambda k: k != KEY))
def test_foreign_key_is_forged(handle: KvHandle, other: bytes) -> None:
    assert code_of(sign(handle, Keys([other]))) == "handle_forged"


def test_every_truncation_is_malformed() -> None:
    data = sign(make(), KEYS)
    assert {code_of(data[:n]) for n in range(len(data))} == {"handle_malformed"}
    assert {code_of(data[n:]) for n in range(1, len(data) + 1)} == {"handle_malformed"}
    assert code_of(data + b"\0") == "handle_malformed"


def test_every_flipped_bit_is_refused_with_the_code_of_its_place() -> None:
    data = sign(make(), KEYS)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        place = bit // 8
        expected = (
            "handle_malformed"
            if place < 4
            else "handle_version"
            if place < 6
            else "handle_malformed"
            if place < 10
            else "handle_forged"
        )
        assert code_of(bytes(flipped)) == expected, f"bit {bit}"


@given(data=st.binary(max_size=300))
def test_garbage_is_malformed(data: bytes) -> None:
    assert code_of(data) == "handle_malformed"


@given(payload=st.binary(max_size=100))
@settings(max_examples=50)
def test_signed_garbage_is_malformed(payload: bytes) -> None:
    signed = struct.pack(">4sHI", b"TKVH", kv_handle.HANDLE_VERSION, len(payload)) + payload
    assert code_of(signed + mac(signed, KEY)) == "handle_malformed"


def test_other_version_is_named_even_with_a_good_signature() -> None:
    data = sign(make(version=kv_handle.HANDLE_VERSION + 1), KEYS)
    with pytest.raises(TandemError, match=r"version 4; this worker reads version 3") as error:
        verify(data, KEYS)
    assert error.value.code == "handle_version"


def test_inner_version_must_be_the_outer_one() -> None:
    payload = msgspec.msgpack.encode(make(version=9))
    signed = struct.pack(">4sHI", b"TKVH", kv_handle.HANDLE_VERSION, len(payload)) + payload
    assert code_of(signed + mac(signed, KEY)) == "handle_malformed"


def test_fitting_handle_passes() -> None:
    check(make(), DECODE, PREFILL, TOKENS)


def other_kv(**changes: Any) -> KvFormat:
    return msgspec.structs.replace(KV, **changes)


@pytest.mark.parametrize(
    ("handle", "peer", "tokens", "code", "text"),
    [
        (make(), None, TOKENS, "handle_unknown_worker", "prefill_0"),
        (make(worker_id="prefill_9"), PREFILL, TOKENS, "handle_unknown_worker", "prefill_9"),
        (make(), worker("prefill_0", transfers=[]), TOKENS, "handle_unknown_worker", "prefill_0"),
        (make(epoch=76), PREFILL, TOKENS, "handle_stale_epoch", "epoch 4c"),
        (make(epoch=78), PREFILL, TOKENS, "handle_stale_epoch", "epoch 4e"),
        (make(kv=other_kv(fingerprint="g")), PREFILL, TOKENS, "handle_fingerprint", "'g'"),
        (make(kv=other_kv(dtype="float32")), PREFILL, TOKENS, "handle_dtype", "float32"),
        (make(kv=other_kv(layout="layer-major")), PREFILL, TOKENS, "handle_layout", "layer-major"),
        (make(kv=other_kv(block_size=4)), PREFILL, TOKENS, "handle_block_size", "4, but 'decode_0' has 2"),
        (make(kv=other_kv(num_layers=5)), PREFILL, TOKENS, "handle_layout", "num_layers 5, but 'decode_0' has 4"),
        (make(kv=other_kv(num_kv_heads=4)), PREFILL, TOKENS, "handle_layout", "num_kv_heads 4"),
        (make(kv=other_kv(slice_bytes=16)), PREFILL, TOKENS, "handle_layout", "slice_bytes 16"),
        (make(partition=TWO), PREFILL, TOKENS, "handle_partition", "made by tensor-parallel 2 x pipeline 1, but"),
        (make(), spread("prefill_0"), TOKENS, "handle_partition", "'prefill_0' is tensor-parallel 2 x pipeline 1"),
        (make(num_tokens=6), PREFILL, TOKENS, "handle_tokens", "6 tokens"),
        (make(), PREFILL, TOKENS[:-1], "handle_tokens", "the request has 4"),
        (make(), PREFILL, [*TOKENS[:-1], 1], "handle_tokens", "other tokens"),
        (make(), PREFILL, TOKENS[::-1], "handle_tokens", "other tokens"),
        (make(held=HeldBlocks(block_ids=[1, 2])), PREFILL, TOKENS, "handle_malformed", "3 are needed"),
        (make(held=HeldBlocks(block_ids=[1, 2, 2])), PREFILL, TOKENS, "handle_malformed", "3 are needed"),
        (make(held=HeldBlocks(block_ids=[1, 2, 9])), PREFILL, TOKENS, "handle_malformed", "0 to 8"),
        (make(held=HeldBlocks(block_ids=[-1, 2, 3])), PREFILL, TOKENS, "handle_malformed", "0 to 8"),
    ],
)
def test_each_mismatch_has_its_code(
    handle: KvHandle, peer: WorkerInfo | None, tokens: list[int], code: str, text: str
) -> None:
    with pytest.raises(TandemError) as error:
        check(handle, DECODE, peer, tokens)
    assert error.value.code == code
    assert text in error.value.message


LIBRARY = LibraryTransfer(library="a 1.0", backend="NIXL", claims="tcp://127.0.0.1:1")
HELD = HeldByLibrary(context_request_id=1, opaque_state=b"x", first_token_ids=[7])


def test_a_handle_holds_what_its_worker_hands_out() -> None:
    theirs = worker("prefill_0", transfers=[], library=LIBRARY)
    check(make(held=HELD), DECODE, theirs, TOKENS)
    for handle, peer in ((make(held=HELD), PREFILL), (make(), theirs)):
        with pytest.raises(TandemError, match="what it holds is not what 'prefill_0' hands out") as error:
            check(handle, DECODE, peer, TOKENS)
        assert error.value.code == "handle_malformed"


@pytest.mark.parametrize(("field", "value"), [("library", "a 1.1"), ("backend", "UCX")])
def test_libraries_have_to_be_the_same(field: str, value: str) -> None:
    mine, peer = worker("decode_0", transfers=[], library=LIBRARY), worker("prefill_0", transfers=[], library=LIBRARY)
    require_compatible(mine, peer)
    other = worker("prefill_0", transfers=[], library=msgspec.structs.replace(LIBRARY, **{field: value}))
    with pytest.raises(TandemError, match=f"library.{field} is .* here and '{value}' there"):
        require_compatible(mine, other)


def test_digest_tells_orders_and_lengths_apart() -> None:
    digests = {digest_tokens(t) for t in ([], [0], [0, 0], [1, 2], [2, 1], [258], [2, 0, 0, 1])}
    assert len(digests) == 7
    for wrong in ([-1], [2**32], [1.5]):
        with pytest.raises(TandemError, match="token_ids"):
            digest_tokens(wrong)  # type: ignore[arg-type]


def test_compatible_workers_may_meet() -> None:
    require_compatible(DECODE, PREFILL)


def test_a_handle_of_a_group_fits_that_group() -> None:
    check(make(partition=TWO), DECODE, spread("prefill_0"), TOKENS)


def test_workers_may_split_the_model_differently() -> None:
    require_compatible(DECODE, spread("prefill_0"))
    require_compatible(spread("decode_0"), PREFILL)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"transfers": [transfer(block_bytes=32)]}, "has 1 KV transfers, but is tensor-parallel 2 x pipeline 1"),
        ({"transfers": [transfer(block_bytes=32)] * 3}, "has 3 KV transfers"),
        (
            {"transfers": [transfer(block_bytes=32), transfer(block_bytes=64)]},
            r"transfers\[1\].block_bytes of 'prefill_0' is 64 instead of 32",
        ),
        (
            {"transfers": [transfer(block_bytes=32), transfer(block_bytes=32, num_blocks=8)]},
            r"transfers\[1\].num_blocks of 'prefill_0' is 8 instead of 9",
        ),
        (
            {"transfers": [transfer(block_bytes=32), transfer(block_bytes=32, agent_name="prefill_01-4d")]},
            r"transfers\[1\].agent_name of 'prefill_0' is 'prefill_01-4d', which does not begin with its id",
        ),
    ],
)
def test_every_rank_needs_its_transfer(changes: dict[str, Any], text: str) -> None:
    for mine, peer in ((DECODE, spread("prefill_0", **changes)), (spread("prefill_0", **changes), DECODE)):
        with pytest.raises(TandemError, match=text) as error:
            require_compatible(mine, peer)
        assert error.value.code == "worker_incompatible"


def test_all_differences_are_named() -> None:
    stranger = worker(
        "prefill_0",
        kv=KvFormat(fingerprint="x", dtype="y", layout="z", block_size=3, num_layers=5, num_kv_heads=3, slice_bytes=9),
        vocab_size=7,
        protocol_version=99,
        transfers=[transfer(block_bytes=65)],
    )
    with pytest.raises(TandemError) as error:
        require_compatible(DECODE, stranger)
    assert error.value.code == "worker_incompatible"
    for field in (*(f"kv.{f}" for f in KvFormat.__struct_fields__), "vocab_size", "protocol_version", "block_bytes"):
        assert field in error.value.message
    assert "'bfloat16' here and 'y' there" in error.value.message


@pytest.mark.parametrize(
    ("peer", "text"),
    [(worker("decode_0"), "same worker_id"), (worker("prefill_0", transfers=[]), "'prefill_0' has no KV transfer")],
)
def test_impossible_pairs(peer: WorkerInfo, text: str) -> None:
    with pytest.raises(TandemError, match=text):
        require_compatible(DECODE, peer)
