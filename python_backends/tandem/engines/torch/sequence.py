"""One request inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.messages import AnyWork, FinishReason, Prefill


@dataclass(eq=False)
class Sequence:
    """Prompt and answer so far, and the KV blocks that hold them."""

    work: AnyWork
    arrived: float
    """When it was submitted (monotonic clock)."""
    token_ids: list[int] = field(default_factory=list)
    """Prompt and answer so far."""
    num_cached: int = 0
    """How many of ``token_ids`` have their KV in the blocks; at least the last one never has."""
    block_ids: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, work: AnyWork, now: float) -> Sequence:
        """A new sequence for ``work``, at ``now`` of the monotonic clock."""
        return cls(work, now, [*work.token_ids, *work.output_ids])

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
        """Tokens that the next step has to read."""
        return len(self.token_ids) - self.num_cached

    @property
    def max_cached(self) -> int:
        """Most tokens whose KV it will ever hold in this engine: the last token's KV is never needed."""
        if isinstance(self.work, Prefill):
            return len(self.work.token_ids) + len(self.work.output_ids)
        return len(self.work.token_ids) + self.work.stopping.max_tokens - 1

    def blocks_needed(self, block_size: int) -> int:
        """Blocks to reserve so that it can run to its end."""
        return -(-self.max_cached // block_size)

    def append(self, token_id: int) -> None:
        """Take the token that a step made of all tokens so far."""
        self.num_cached = len(self.token_ids)
        self.token_ids.append(token_id)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Whether the answer ends with its last token, and why."""
        stopping = self.work.stopping
        if self.num_output > stopping.min_tokens and self.token_ids[-1] in stopping.stop_token_ids:
            return "stop"
        if self.num_output >= stopping.max_tokens:
            return "length"
        return None
