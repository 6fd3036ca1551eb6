"""Leases and handles over KV that the library holds: granted by prefill, claimed by decode."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tandem.engines.tensorrt_llm.claims import ClaimClient
from tandem.engines.tensorrt_llm.library import Library
from tandem.engines.tensorrt_llm.logprobs import pack_logprobs
from tandem.errors import TandemError
from tandem.keys import Keys
from tandem.kv.handle import HANDLE_VERSION, check, digest_tokens, sign, verify
from tandem.kv.leases import LeaseTable
from tandem.messages import Decode, HeldByLibrary, KvHandle, WorkerInfo

REDEEMED_REMEMBERED = 4096
_NOTHING = HeldByLibrary(context_request_id=0, opaque_state=b"", first_token_ids=[])


@dataclass(frozen=True)
class _Pinned:
    """KV that the library holds for a handle, until it was fetched or its time is over: it cannot be told to let go."""

    lease_id: int
    blocks: int
    free_at: float


class HandOver:
    """Of one worker. Used in the event loop alone, but for ``peers``."""

    def __init__(
        self, info: WorkerInfo, library: Library, leases: LeaseTable, claims: ClaimClient, keys: Keys, pinned_s: float
    ) -> None:
        """``pinned_s``: after how long the library frees KV that nobody has fetched."""
        self._info, self._library, self._leases, self._claims, self._keys = info, library, leases, claims, keys
        self._pinned_s = pinned_s
        self.peers: dict[str, WorkerInfo] = {}
        """Paired workers by id."""
        self._redeemed: OrderedDict[tuple[str, int, int], None] = OrderedDict()
        """(worker, epoch, lease) of handles that were claimed here."""
        self._pinned: list[_Pinned] = []

    @property
    def blocks_held(self) -> int:
        """Blocks that the library holds for handles. Those of a claimed one are fetched at once, and not counted."""
        now = time.monotonic()
        ends = {each.lease_id: self._leases.end_of(each.lease_id) for each in self._pinned}
        self._pinned = [p for p in self._pinned if p.free_at > now and ends[p.lease_id] != "handle_used"]
        return sum(each.blocks for each in self._pinned)

    def grant(self, request_id: str, prompt: list[int], told: Any) -> bytes:
        """A handle for what the context phase has ``told`` (``DisaggregatedParams``); None: there was none, and nothing
        is held.

        Raises:
            TandemError: ``engine_failed``: it has told too little.
        """
        if told is None:
            return self._sign(request_id, prompt, _NOTHING)
        lacking = [name for name in ("ctx_request_id", "opaque_state", "first_gen_tokens") if not _get(told, name)]
        if lacking:
            raise TandemError("engine_failed", f"TensorRT-LLM's context phase has told no {', '.join(lacking)}")
        more = {name: value for name in self._library.extra_disaggregated if (value := _get(told, name)) is not None}
        held = HeldByLibrary(
            context_request_id=told.ctx_request_id,
            opaque_state=told.opaque_state,
            first_token_ids=list(told.first_gen_tokens),
            draft_token_ids=list(told.draft_tokens) if told.draft_tokens else None,
            more=more,
            first_logprobs=pack_logprobs(_get(told, "first_gen_log_probs")),
        )
        return self._sign(request_id, prompt, held)

    def _sign(self, request_id: str, prompt: list[int], held: HeldByLibrary) -> bytes:
        lease_id = self._leases.grant(request_id, ())
        if held.opaque_state:
            blocks = -(-(len(prompt) + 1) // self._info.kv.block_size)
            self._pinned.append(_Pinned(lease_id, blocks, time.monotonic() + self._pinned_s))
        handle = KvHandle(
            version=HANDLE_VERSION,
            worker_id=self._info.worker_id,
            epoch=self._info.epoch,
            lease_id=lease_id,
            kv=self._info.kv,
            partition=self._info.partition,
            num_tokens=len(prompt),
            tokens_digest=digest_tokens(prompt),
            held=held,
        )
        return sign(handle, self._keys)

    def accept(self, work: Decode) -> KvHandle:
        """Check the handle of ``work``, as far as this worker can by itself.

        Raises:
            TandemError: why it cannot be redeemed.
        """
        handle = verify(work.handle, self._keys)
        known = [*work.token_ids, *work.output_ids]
        check(handle, self._info, self.peers.get(handle.worker_id), known[:-1][: handle.num_tokens])
        if isinstance(handle.held, HeldByLibrary) and handle.held.opaque_state:
            first = known[handle.num_tokens : handle.num_tokens + len(handle.held.first_token_ids)]
            if handle.held.first_token_ids != first:
                raise TandemError(
                    "handle_tokens",
                    f"handle: prefill made the first token {handle.held.first_token_ids}; the request has {first}",
                )
        if _name(handle) in self._redeemed:
            raise TandemError("handle_used", f"handle: lease {handle.lease_id} was redeemed here before")
        return handle

    async def claim(self, handle: KvHandle) -> None:
        """Take the lease of an accepted handle, which nobody else can use from then on.

        Raises:
            TandemError: it does not hold any more, or prefill does not answer.
        """
        if _name(handle) in self._redeemed:
            raise TandemError("handle_used", f"handle: lease {handle.lease_id} was redeemed here before")
        self._redeemed[_name(handle)] = None
        if len(self._redeemed) > REDEEMED_REMEMBERED:
            self._redeemed.popitem(last=False)
        library = self.peers[handle.worker_id].library
        assert library is not None  # ``check`` has seen to it
        await self._claims.claim(library.claims, agent_name(handle.worker_id, handle.epoch), handle.lease_id)

    def cancel(self, request_ids: Iterable[str]) -> None:
        """End the leases of these requests. The library keeps their KV until its own time is over."""
        self._leases.cancel(request_ids)


def agent_name(worker_id: str, epoch: int) -> str:
    """A worker in one epoch, as claims name it."""
    return f"{worker_id}-{epoch:x}"


def _name(handle: KvHandle) -> tuple[str, int, int]:
    return handle.worker_id, handle.epoch, handle.lease_id


def _get(told: Any, name: str) -> Any:
    return None if told is None else getattr(told, name, None)
