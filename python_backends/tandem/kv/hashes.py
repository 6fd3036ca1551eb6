"""Names for the contents of KV blocks: a hash chained over all tokens up to the block's end, salted per tenant.

Equal names mean equal tokens from the prompt's start on, so that the KV is the same; the router and the workers compute
the same names, whatever process they are in.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

HASH_BYTES = 8


def hash_blocks(token_ids: Sequence[int], block_size: int, salt: str = "") -> list[int]:
    """The names of all whole blocks of ``token_ids``, in their order: BLAKE2b over (name before, tokens), 64 bits.

    The first block's name before is a hash of ``salt``. Token ids must fit 32 bits.
    """
    name = blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"tandem-salt").digest()
    whole = len(token_ids) - len(token_ids) % block_size
    packed = struct.pack(f"<{whole}I", *token_ids[:whole])
    names = []
    for start in range(0, len(packed), 4 * block_size):
        name = blake2b(name + packed[start : start + 4 * block_size], digest_size=HASH_BYTES).digest()
        names.append(int.from_bytes(name, "little"))
    return names
