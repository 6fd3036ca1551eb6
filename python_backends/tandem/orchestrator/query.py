"""What a request asks of the router."""

from __future__ import annotations

from functools import cached_property

from tandem.kv.hashes import Hashes, hash_chain


class Query:
    """Tokens that are to be read, and how many may follow them."""

    def __init__(self, token_ids: list[int], max_tokens: int, block_size: int, salt: str = "") -> None:
        self.num_tokens, self.max_tokens = len(token_ids), max_tokens
        self._token_ids, self._block_size, self._salt = token_ids, block_size, salt

    @cached_property
    def hashes(self) -> Hashes:
        """Names of the tokens' whole blocks. Made once, since a request may be weighed several times before it goes;
        and not before that, since one that is refused is not weighed."""
        return hash_chain(self._token_ids, self._block_size, self._salt)
