"""Names for the contents of KV blocks: a hash chained over all tokens up to the block's end, salted per tenant.

Equal names mean equal tokens from the prompt's start on, so that the KV is the same; the router and the workers compute
the same names, whatever process they are in.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
"""Names of the blocks of a chain, in its order."""

HASH_BYTES = 8
DIGEST_BYTES = 32


def hash_blocks(token_ids: Sequence[int], block_size: int, salt: str = "") -> list[int]:
    """``hash_chain``, as Python's numbers."""
    names: list[int] = hash_chain(token_ids, block_size, salt).tolist()
    return names


def hash_chain(token_ids: Sequence[int], block_size: int, salt: str = "") -> Hashes:
    """The names of all whole blocks of ``token_ids``, in their order: BLAKE2b over (name before, tokens), 64 bits.

    The first block's name before is a hash of ``salt``. Token ids must fit 32 bits.
    """
    name = _hash_salt(salt)
    whole = len(token_ids) - len(token_ids) % block_size
    packed = pack_tokens(token_ids[:whole])
    names = bytearray()
    for start in range(0, len(packed), 4 * block_size):
        name = _hash(name, packed[start : start + 4 * block_size])
        names += name
    return np.frombuffer(names, "<u8")


def pack_hashes(names: Sequence[int]) -> Hashes:
    """Names, each of 64 bits without a sign, as ``hash_chain`` gives them."""
    return np.frombuffer(array("Q", names), np.uint64)


def hash_block(before: int | None, tokens: bytes, salt: str = "") -> int:
    """The name of one block of packed ``tokens``; ``before`` is that of the block before it, None for the first."""
    name = _hash_salt(salt) if before is None else before.to_bytes(HASH_BYTES, "little")
    return int.from_bytes(_hash(name, tokens), "little")


def digest_block(before: bytes | None, tokens: bytes, salt: str = "") -> bytes:
    """32 bytes for one block of packed ``tokens``; ``before`` are those of the block before it, None for the first."""
    if before is None:
        before = blake2b(salt.encode(), digest_size=DIGEST_BYTES, person=b"tandem-salt-32").digest()
    return blake2b(before + tokens, digest_size=DIGEST_BYTES, person=b"tandem-digest").digest()


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as 32-bit little-endian numbers."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _hash_salt(salt: str) -> bytes:
    return blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"tandem-salt").digest()


def _hash(before: bytes, tokens: bytes) -> bytes:
    return blake2b(before + tokens, digest_size=HASH_BYTES).digest()
