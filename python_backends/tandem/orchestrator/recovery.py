"""What becomes of a request when a worker or a hand-over fails: whether it goes on elsewhere, when, and where not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tandem.errors import ErrorCode, TandemError
from tandem.kv.handle import digest_tokens
from tandem.messages import FinishReason, Stopping

log = logging.getLogger(__name__)

BACK_OFF_S = 0.05
"""Before the first new try; doubled with each."""
LONGEST_BACK_OFF_S = 0.5
"""While it waits for room."""

_HANDOVER: frozenset[ErrorCode] = frozenset(
    (
        "transfer_failed",
        "lease_expired",
        "lease_cancelled",
        "lease_unknown",
        "handle_stale_epoch",
        "handle_unknown_worker",
        "handle_used",
    )
)
"""The KV did not reach decode. It is read anew."""
_WORKER: frozenset[ErrorCode] = frozenset(("worker_lost", "engine_failed", "overloaded"))
MOVABLE = _HANDOVER | _WORKER
"""What a request goes on elsewhere after."""


class WorkerFailed(TandemError):
    """A try ended through no fault of the request's."""

    def __init__(self, code: ErrorCode, message: str, blamed: str) -> None:
        """``blamed`` is the worker that is rather not asked again."""
        super().__init__(code, message)
        self.blamed = blamed


def judge(code: ErrorCode, message: str, worker: str, prefill_worker: str) -> TandemError:
    """The error that ``worker`` reported: a ``WorkerFailed``, unless it is the request's own fault or lack of time.
    When a hand-over failed, what is blamed is the worker that the KV should have come from."""
    if code in _HANDOVER:
        return WorkerFailed(code, message, prefill_worker)
    if code in _WORKER:
        return WorkerFailed(code, message, worker)
    return TandemError(code, message)


def find_reason(stopping: Stopping, token_ids: list[int]) -> FinishReason | None:
    """Whether an answer of these tokens has ended, and why: as engines judge. They may be lost before they say so."""
    if not token_ids:
        return None
    if len(token_ids) > stopping.min_tokens and token_ids[-1] in stopping.stop_token_ids:
        return "stop"
    return "length" if len(token_ids) >= stopping.max_tokens else None


class Recovery:
    """The tries of one request."""

    def __init__(
        self,
        request_id: str,
        max_migrations: int,
        max_queue_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``max_queue_s``: for so long from now on a request that has not begun waits for room where all is full;
        ``clock`` gives seconds that never run backwards."""
        self._request_id = request_id
        self._max_migrations = max_migrations
        self._failures: list[WorkerFailed] = []
        self._clock, self._patient_until = clock, clock() + max_queue_s
        self._refusals = 0

    @property
    def migrations(self) -> int:
        """How often the request went on elsewhere."""
        return len(self._failures)

    @property
    def last_blamed(self) -> str:
        """The worker that it failed on last; empty: on none yet."""
        return self._failures[-1].blamed if self._failures else ""

    @property
    def avoid(self) -> frozenset[str]:
        """Workers that it failed on: they are asked again only where there is no other."""
        return frozenset(failure.blamed for failure in self._failures)

    def next_try(self, error: TandemError, prompt: list[int], num_made: int) -> float:
        """The seconds to wait before the request goes on elsewhere, ``num_made`` tokens of its answer being there.

        Raises:
            TandemError: it does not: the error is no worker's, there were tries enough, or a request that has not
                begun has waited too long for room.
        """
        if not isinstance(error, WorkerFailed):
            raise error
        if error.code == "overloaded" and not (num_made or self.migrations):
            return self._wait_for_room(error)
        if self.migrations >= self._max_migrations:
            raise self._give_up(error, prompt)
        self._failures.append(error)
        log.warning(
            "request %s goes on elsewhere after %d tokens, try %d of %d: %s",
            self._request_id,
            num_made,
            self.migrations,
            self._max_migrations,
            error,
        )
        return BACK_OFF_S * 2.0 ** (self.migrations - 1)

    def _wait_for_room(self, error: WorkerFailed) -> float:
        if self._clock() >= self._patient_until:
            raise error
        self._refusals += 1
        return float(min(BACK_OFF_S * 2.0 ** (self._refusals - 1), LONGEST_BACK_OFF_S))

    def _give_up(self, error: WorkerFailed, prompt: list[int]) -> TandemError:
        """The last error, and in the log what is needed to find a request that kills workers."""
        if not self._failures:
            return error
        failed = ", ".join(f"{failure.blamed} ({failure.code})" for failure in [*self._failures, error])
        log.error(
            "request %s is given up: it failed on %s; its prompt of %d tokens has the digest %s",
            self._request_id,
            failed,
            len(prompt),
            digest_tokens(prompt).hex(),
        )
        return TandemError(error.code, f"{error.message}; given up after {self.migrations + 1} tries: {failed}")
