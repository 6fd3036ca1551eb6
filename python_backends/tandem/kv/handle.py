"""The KV handle as bytes: signed by prefill, verified by decode, and checked field by field against who they are.

    "TKVH" │ version u16 │ payload length u32 │ payload: KvHandle as msgpack │ HMAC-SHA256 of all before it
      4 B  │     2 B     │        4 B         │                              │ 32 B        (big-endian)

The version stands outside the payload, since another version may have another payload.
"""

from __future__ import annotations

import hmac
import re
import struct
from hashlib import blake2b

import msgspec

from tandem.errors import ErrorCode, TandemError
from tandem.keys import KEY_VARIABLE, Keys
from tandem.kv.reshard import block_bytes_of
from tandem.messages import (
    HeldBlocks,
    HeldByLibrary,
    KvFormat,
    KvHandle,
    LibraryTransfer,
    Partition,
    WorkerInfo,
    decoder,
    encode,
)

HANDLE_VERSION = 3

_MAGIC = b"TKVH"
_HEADER = struct.Struct(">4sHI")
_MAC_BYTES = 32
_payload_decoder: msgspec.msgpack.Decoder[KvHandle] = decoder(KvHandle)

_FORMAT_CODES: dict[str, ErrorCode] = {
    "fingerprint": "handle_fingerprint",
    "dtype": "handle_dtype",
    "layout": "handle_layout",
    "block_size": "handle_block_size",
    "num_layers": "handle_layout",
    "num_kv_heads": "handle_layout",
    "slice_bytes": "handle_layout",
}


def digest_tokens(token_ids: list[int]) -> bytes:
    """Hash of token ids: BLAKE2b, 16 bytes, over their 32-bit little-endian values.

    Raises:
        TandemError: ``invalid_request``, an id does not fit 32 bits.
    """
    try:
        packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    except struct.error as error:
        raise TandemError(
            "invalid_request", f"token_ids: each must be an integer from 0 to 2**32 - 1: {error}"
        ) from error
    return blake2b(packed, digest_size=16).digest()


def make_handle(holder: WorkerInfo, lease_id: int, token_ids: list[int], block_ids: list[int]) -> KvHandle:
    """The handle for blocks of ``holder`` that are under a lease, and hold the KV of ``token_ids``."""
    return KvHandle(
        version=HANDLE_VERSION,
        worker_id=holder.worker_id,
        epoch=holder.epoch,
        lease_id=lease_id,
        kv=holder.kv,
        partition=holder.partition,
        num_tokens=len(token_ids),
        tokens_digest=digest_tokens(token_ids),
        held=HeldBlocks(block_ids=block_ids),
    )


def sign(handle: KvHandle, keys: Keys) -> bytes:
    """The handle as bytes that nobody without the deployment's key can make or change."""
    payload = encode(handle)
    signed = _HEADER.pack(_MAGIC, handle.version, len(payload)) + payload
    return signed + keys.sign(signed)


def verify(data: bytes, keys: Keys) -> KvHandle:
    """The handle that ``sign`` made with one of these keys.

    Raises:
        TandemError: ``handle_malformed`` (not a whole handle), ``handle_version`` (another version's) or
            ``handle_forged`` (changed on the way, or signed with another key).
    """
    if len(data) < _HEADER.size + _MAC_BYTES:
        raise TandemError("handle_malformed", f"handle: {len(data)} bytes are too few for a KV handle")
    magic, version, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise TandemError("handle_malformed", f"handle: starts with {magic!r}, not with {_MAGIC!r}: not a KV handle")
    if version != HANDLE_VERSION:
        raise TandemError(
            "handle_version",
            f"handle: version {version}; this worker reads version {HANDLE_VERSION}: run the same Tandem everywhere",
        )
    expected = _HEADER.size + length + _MAC_BYTES
    if len(data) != expected:
        raise TandemError("handle_malformed", f"handle: {len(data)} bytes instead of {expected}: cut or padded")
    signed, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not keys.verify(signed, mac):
        raise TandemError(
            "handle_forged",
            f"handle: its signature does not fit; it was changed, or {KEY_VARIABLE} differs between the workers",
        )
    try:
        handle = _payload_decoder.decode(signed[_HEADER.size :])
    except msgspec.DecodeError as error:
        raise TandemError("handle_malformed", f"handle: {error}") from error
    if handle.version != version:
        raise TandemError("handle_malformed", f"handle: version {handle.version} inside, {version} outside")
    return handle


def check(handle: KvHandle, mine: WorkerInfo, peer: WorkerInfo | None, token_ids: list[int]) -> None:
    """Whether ``mine`` may pull what the handle names from ``peer`` and use it as the KV of ``token_ids``.

    Raises:
        TandemError: the code of the first thing that does not fit; its text says what was expected.
    """
    if peer is None or peer.worker_id != handle.worker_id or not (peer.transfers or peer.library):
        known = "none" if peer is None else repr(peer.worker_id)
        raise TandemError(
            "handle_unknown_worker",
            f"handle: from worker {handle.worker_id!r}, with which {mine.worker_id!r} is not paired (paired: {known})",
        )
    if handle.epoch != peer.epoch:
        raise TandemError(
            "handle_stale_epoch",
            f"handle: from epoch {handle.epoch:x} of worker {handle.worker_id!r}, but {mine.worker_id!r} is paired "
            f"with epoch {peer.epoch:x}: the worker was restarted and its KV is lost, so run the prefill again",
        )
    _check_format(handle.kv, mine)
    if handle.partition != peer.partition:
        raise TandemError(
            "handle_partition",
            f"handle: made by {_words(handle.partition)}, but {handle.worker_id!r} is {_words(peer.partition)}",
        )
    _check_tokens(handle, token_ids)
    if isinstance(handle.held, HeldByLibrary) != (peer.library is not None):
        raise TandemError("handle_malformed", f"handle: what it holds is not what {handle.worker_id!r} hands out")
    if peer.library is None:
        _check_blocks(handle, peer.transfers[0].num_blocks)


def require_compatible(mine: WorkerInfo, peer: WorkerInfo) -> None:
    """Whether KV of one means the same to the other, and can move. Their partitions may differ.

    Raises:
        TandemError: ``worker_incompatible``, naming everything in which the two differ.
    """
    differences = find_differences(mine, peer)
    if mine.worker_id == peer.worker_id:
        differences.append("both have the same worker_id")
    if mine.library or peer.library:
        differences += _find_library_differences(mine.library, peer.library)
    else:
        differences += [problem for worker in (mine, peer) for problem in find_transfer_problems(worker, worker.kv)]
    if differences:
        raise TandemError(
            "worker_incompatible",
            f"worker {mine.worker_id!r} cannot exchange KV with {peer.worker_id!r}: {'; '.join(differences)}",
        )


def find_differences(mine: WorkerInfo, peer: WorkerInfo) -> list[str]:
    """In what two workers differ that must be equal for them to serve one deployment."""
    return [
        f"{name} is {ours!r} here and {theirs!r} there"
        for name, ours, theirs in [
            ("protocol_version", mine.protocol_version, peer.protocol_version),
            *((f"kv.{f}", getattr(mine.kv, f), getattr(peer.kv, f)) for f in KvFormat.__struct_fields__),
            ("vocab_size", mine.vocab_size, peer.vocab_size),
        ]
        if ours != theirs
    ]


def find_transfer_problems(worker: WorkerInfo, kv: KvFormat) -> list[str]:
    """What keeps KV in the format ``kv`` from moving to and from the ranks of ``worker``."""
    name, partition, transfers = worker.worker_id, worker.partition, worker.transfers
    if not transfers:
        return [f"{name!r} has no KV transfer"]
    if len(transfers) != partition.size:
        return [f"{name!r} has {len(transfers)} KV transfers, but is {_words(partition)}"]
    problems = []
    for rank, transfer in enumerate(transfers):
        # Connections go by agent name: one that is another worker's would take its place, and break it.
        if not re.match(rf"{re.escape(name)}([-.]|$)", transfer.agent_name):
            agent = transfer.agent_name
            problems.append(f"transfers[{rank}].agent_name of {name!r} is {agent!r}, which does not begin with its id")
        expected = {"block_bytes": block_bytes_of(partition, rank, kv), "num_blocks": transfers[0].num_blocks}
        for field, value in expected.items():
            if (theirs := getattr(transfer, field)) != value:
                problems.append(f"transfers[{rank}].{field} of {name!r} is {theirs} instead of {value}")
    return problems


def _find_library_differences(mine: LibraryTransfer | None, peer: LibraryTransfer | None) -> list[str]:
    """A library reads only what the same version of it has sent, in the same way."""
    if mine is None or peer is None:
        return ["KV is moved by Tandem on one side and by the engine's library on the other"]
    return [
        f"library.{field} is {ours!r} here and {theirs!r} there"
        for field in ("library", "backend")
        if (ours := getattr(mine, field)) != (theirs := getattr(peer, field))
    ]


def _words(partition: Partition) -> str:
    return f"tensor-parallel {partition.tensor_parallel_size} x pipeline {partition.pipeline_parallel_size}"


def _check_format(kv: KvFormat, mine: WorkerInfo) -> None:
    for field, code in _FORMAT_CODES.items():
        theirs, ours = getattr(kv, field), getattr(mine.kv, field)
        if theirs != ours:
            raise TandemError(code, f"handle: {field} {theirs!r}, but {mine.worker_id!r} has {ours!r}")


def _check_tokens(handle: KvHandle, token_ids: list[int]) -> None:
    if handle.num_tokens != len(token_ids):
        raise TandemError(
            "handle_tokens", f"handle: holds {handle.num_tokens} tokens, but the request has {len(token_ids)}"
        )
    if not hmac.compare_digest(handle.tokens_digest, digest_tokens(token_ids)):
        raise TandemError("handle_tokens", "handle: made for other tokens than those of the request")


def _check_blocks(handle: KvHandle, num_blocks: int) -> None:
    """A signed handle with such blocks is prefill's mistake; reading them would still be ours."""
    needed = -(-handle.num_tokens // handle.kv.block_size)
    blocks = set(handle.block_ids)
    if len(handle.block_ids) != needed or len(blocks) != needed:
        raise TandemError(
            "handle_malformed",
            f"handle: {len(blocks)} different blocks for {handle.num_tokens} tokens; {needed} are needed",
        )
    if not all(0 <= block < num_blocks for block in blocks):
        raise TandemError("handle_malformed", f"handle: block ids must lie from 0 to {num_blocks - 1}")
