"""One request inside the engine, and how far it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorrt_llm._blocks import Block
    from tensorrt_llm._results import RequestOutput
    from tensorrt_llm._transfer import Fetch


class Stage(Enum):
    QUEUED = auto()
    PREFILL = auto()
    FETCHING = auto()
    """Generation only: the KV is on its way, and nothing can stop it."""
    FETCHED = auto()
    DECODE = auto()
    SENDING = auto()
    """Context only: answered, and its KV waits to be fetched."""
    ENDED = auto()


@dataclass(eq=False)
class Sequence:
    client_id: int
    prompt: list[int]
    sampling: Any
    max_tokens: int
    streaming: bool
    disaggregated: Any = None
    salt: str = ""
    request_id: int = 0
    """The engine's own, from ``max_batch_size`` on: those of two engines are alike."""
    flavour: str = ""
    unread: int = 0
    """Prompt tokens still to be read."""
    stage: Stage = Stage.QUEUED
    result: RequestOutput | None = None
    answer: list[int] = field(default_factory=list)
    state: bytes = b""
    blocks: list[Block] = field(default_factory=list)
    cached_tokens: int = 0
    decoding_iter: int = 0
    unsent: list[int] = field(default_factory=list)
    """Tokens that wait for ``stream_interval`` or for the end."""
    fetch: Fetch | None = None
    transfer_began: float | None = None
    abort_asked: bool = False

    @property
    def kind(self) -> str:
        """``context_only``, ``generation_only`` or ``context_and_generation``."""
        asked = self.disaggregated.request_type if self.disaggregated is not None else None
        return asked or "context_and_generation"

    @property
    def transfer_id(self) -> int:
        """By which both phases know the KV."""
        shared = getattr(self.disaggregated, "disagg_request_id", None)
        of_context = self.disaggregated.ctx_request_id if self.kind == "generation_only" else None
        return int(shared or of_context or self.request_id)

    @property
    def seed(self) -> int:
        """What the choice of tokens depends on besides the text: nothing, where it is greedy."""
        return (self.sampling.seed or 0) if self.sampling.temperature else 0

    def transfer_is_late(self, timeout_ms: int | None) -> bool:
        return (
            timeout_ms is not None
            and self.transfer_began is not None
            and (time.monotonic() - self.transfer_began) * 1000 > timeout_ms
        )
