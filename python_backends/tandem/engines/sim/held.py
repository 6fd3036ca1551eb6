"""A request that a simulated worker has in hand, and what its KV blocks hold."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.engines.sim.contents import BlockContents, name_contents
from tandem.engines.torch.sequence import Sequence
from tandem.messages import KvHandle


@dataclass(eq=False)
class Held:
    """One request."""

    sequence: Sequence
    prompt_digest: bytes
    handle: KvHandle | None
    num_named: int = 0
    """Blocks at its start whose contents are named."""
    reading: bool = False
    """Whether the transfer is at work: only it can end the request then."""
    cancelled: bool = False

    @property
    def tokens_to_move(self) -> int:
        """Tokens whose KV has to come from elsewhere: those of the handle, or of the lender, but for blocks that are
        here already."""
        sequence = self.sequence
        if self.handle is not None:
            return max(0, self.handle.num_tokens - sequence.shared_tokens)
        if sequence.num_lent:
            return sequence.num_lent_tokens
        assert sequence.lender is not None  # only such requests are pulled
        return sequence.lender.num_tokens - sequence.shared_tokens

    def is_right(self, contents: BlockContents) -> bool:
        """Whether the blocks that were pulled are those of the request's tokens, as their names say."""
        sequence = self.sequence
        tokens = self.handle.num_tokens if self.handle else sequence.num_lent * sequence.block_size
        names = self._names(tokens)
        self.num_named = tokens // sequence.block_size
        return contents.hold(sequence.block_ids[: len(names)], names)

    def name_blocks(self, contents: BlockContents) -> None:
        """Name what the blocks hold that have become whole; cached ones have their names."""
        sequence = self.sequence
        first, end = max(self.num_named, sequence.num_shared), sequence.num_cached // sequence.block_size
        self.num_named = max(first, end)
        if first < end:
            contents.write(sequence.block_ids[first:end], [sequence.chain[i][0] for i in range(first, end)])

    def name_all(self, contents: BlockContents) -> None:
        """Name what all blocks hold, the last one too, which need not be whole."""
        names = self._names(self.sequence.num_cached)
        contents.write(self.sequence.block_ids[self.num_named : len(names)], names[self.num_named :])

    def _names(self, num_tokens: int) -> list[int]:
        sequence = self.sequence
        return name_contents(sequence.chain, sequence.token_ids[:num_tokens], sequence.block_size)
