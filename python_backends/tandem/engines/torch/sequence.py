"""One request inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.kv.prefix_cache import Chain
from tandem.messages import AnyWork, Decode, Finished, FinishReason, Generate, Lender, Prefill


@dataclass(eq=False)
class Sequence:
    """Prompt and answer so far, and the KV blocks that hold them."""

    work: AnyWork
    arrived: float
    """When it was submitted (monotonic clock)."""
    block_size: int
    token_ids: list[int]
    """Prompt and answer so far."""
    chain: Chain
    """The names of its whole blocks."""
    num_cached: int = 0
    """How many of ``token_ids`` have their KV in the blocks; at least the last one never has."""
    block_ids: list[int] = field(default_factory=list)
    num_shared: int = 0
    """Blocks at its start that were in the prefix cache when it started, in memory or in the second tier."""
    num_stored: int = 0
    """Blocks at its start that the prefix cache knows."""
    queue_s: float = 0.0
    """How long it waited for its first prefill step."""
    compute_s: float = 0.0
    """What its prefill steps took, until it had a token of its own."""
    number: int = 0
    """Its place in the order of arrival."""
    preemptions: int = 0
    """How often it has given up its blocks."""
    lender: Lender | None = None
    """Who is to lend the KV of its beginning; None: nobody, or not any more."""
    num_lent: int = 0
    """Blocks at its start that the lender has, once it has said so."""
    told_cached: int | None = None
    """What it found in the prefix cache before it gave up its blocks for the first time."""

    @classmethod
    def of(cls, work: AnyWork, now: float, block_size: int) -> Sequence:
        """A new sequence for ``work``, at ``now`` of the monotonic clock."""
        token_ids = [*work.token_ids, *work.output_ids]
        lender = None if isinstance(work, Decode) else work.lender
        chain = Chain(token_ids, block_size, work.salt, keeps=work.keeps)
        return cls(work, now, block_size, token_ids, chain, lender=lender)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.work.request_id

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.work.token_ids)

    @property
    def num_output(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - len(self.work.token_ids)

    @property
    def num_uncached(self) -> int:
        """Tokens that have to be read before the next one is made."""
        return len(self.token_ids) - self.num_cached

    @property
    def num_unread(self) -> int:
        """Tokens that have to be read here, if the lender keeps its word."""
        lent = self.lender.num_tokens if self.lender else 0
        return len(self.token_ids) - max(self.num_cached, min(lent, self.most_reusable * self.block_size))

    @property
    def most_reusable(self) -> int:
        """Whole blocks that may come from elsewhere: at least one token is read, to make the next."""
        return (len(self.token_ids) - 1) // self.block_size

    @property
    def borrows(self) -> bool:
        """Whether its lender has more of it than was found here."""
        lent = self.lender.num_tokens // self.block_size if self.lender else 0
        return min(lent, self.most_reusable) > self.num_shared

    @property
    def awaits_kv(self) -> bool:
        """Whether its KV comes from elsewhere; what it has given up it computes here."""
        return isinstance(self.work, Decode) and not self.preemptions

    @property
    def shared_tokens(self) -> int:
        """Tokens whose KV was there when it started, or started anew."""
        return self.num_shared * self.block_size

    @property
    def cached_tokens(self) -> int:
        """Tokens of prompt and answer that were in the prefix cache when it started."""
        return self.shared_tokens if self.told_cached is None else self.told_cached

    @property
    def num_lent_tokens(self) -> int:
        """Tokens whose KV was not there when it started, and was lent."""
        return (self.num_lent - self.num_shared) * self.block_size

    @property
    def max_cached(self) -> int:
        """Most tokens whose KV it will ever hold in this engine: the last token's KV is never needed."""
        if isinstance(self.work, Prefill):
            return len(self.work.token_ids) + len(self.work.output_ids)
        return len(self.work.token_ids) + self.work.stopping.max_tokens - 1

    @property
    def blocks_needed(self) -> int:
        """Most blocks that it will ever hold."""
        return -(-self.max_cached // self.block_size)

    def blocks_for(self, ahead: int) -> int:
        """Blocks for the tokens that it has and the next ``ahead``, as far as it needs any."""
        return -(-min(len(self.token_ids) + ahead, self.max_cached) // self.block_size)

    def give_up(self) -> list[int]:
        """Give way to others: it begins anew with the tokens it has. Returns the blocks that it held."""
        self.told_cached = self.cached_tokens
        self.preemptions += 1
        return self.let_go()

    def let_go(self) -> list[int]:
        """Begin anew, and compute what comes from nowhere here. Returns the blocks that it held."""
        self.lender, self.num_lent = None, 0
        blocks, self.block_ids = self.block_ids, []
        self.num_cached = self.num_shared = self.num_stored = 0
        return blocks

    def append(self, token_id: int) -> None:
        """Take the token that a step made of all tokens so far, whose KV is there now."""
        self.num_cached = len(self.token_ids)
        self.token_ids.append(token_id)

    def finished(self, reason: FinishReason) -> Finished:
        """The event of its end. What a ``Decode`` was spared and waited for is told of its prefill."""
        if not isinstance(self.work, Generate):
            return Finished(request_id=self.request_id, reason=reason)
        return Finished(
            request_id=self.request_id,
            reason=reason,
            cached_tokens=self.cached_tokens,
            queue_s=self.queue_s,
            compute_s=self.compute_s,
        )

    @property
    def finish_reason(self) -> FinishReason | None:
        """Whether the answer ends with its last token, and why."""
        stopping = self.work.stopping
        if self.num_output > stopping.min_tokens and self.token_ids[-1] in stopping.stop_token_ids:
            return "stop"
        if self.num_output >= stopping.max_tokens:
            return "length"
        return None
