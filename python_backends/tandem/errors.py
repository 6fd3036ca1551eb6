"""The errors that reach a client, each with a stable code, whatever process they start in."""

from __future__ import annotations

from typing import Literal, get_args

ErrorCode = Literal[
    # the request is wrong
    "invalid_request",
    "forbidden",
    "prompt_too_long",
    # no room or no time
    "overloaded",
    "deadline_exceeded",
    "cancelled",
    # the KV handle cannot be redeemed
    "handle_malformed",
    "handle_version",
    "handle_forged",
    "handle_unknown_worker",
    "handle_stale_epoch",
    "handle_fingerprint",
    "handle_dtype",
    "handle_layout",
    "handle_block_size",
    "handle_partition",
    "handle_tokens",
    "handle_used",
    "lease_expired",
    "lease_cancelled",
    "lease_unknown",
    "transfer_failed",
    # the worker
    "worker_incompatible",
    "worker_lost",
    "engine_failed",
    "not_found",
    # the machine lacks something, or it is in use
    "environment",
]

ERROR_CODES: tuple[str, ...] = get_args(ErrorCode)


class TandemError(Exception):
    """An error with a code; its text says which field, which value and what was expected."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"
