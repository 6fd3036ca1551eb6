"""Faults on demand. ``FAKE_TRTLLM_FAULTS=step[:number],…``: the first so many (default: all) at that step fail.

=================  ==========================================================================================
construct          the constructor raises, as when memory does not suffice
generate           ``generate_async`` raises
context            a context request ends with an error
transfer_lost      the other side never gets the KV it asks for: the transfer runs into its timeout
transfer_stuck     and its timeout goes unheard, too: the generation request is never answered (seen in 1.2's sources)
transfer_refused   the KV asked for is gone: the generation request ends with an error
generation         a generation request ends with an error after its second token
stats              reading the statistics raises
events             reading the KV events raises
fatal              the engine ends with an error that all its requests are told
die                the process ends at the next step, as MPI ends it with a rank that dies
hang               steps stand still, while the process lives
=================  ==========================================================================================
"""

from __future__ import annotations

import os
from threading import Lock

STEPS = (
    *("construct", "generate", "context", "transfer_lost", "transfer_stuck", "transfer_refused", "generation"),
    *("stats", "events", "fatal", "die", "hang"),
)


class Faults:
    """Those of one engine; tests that share its process may also ``arm`` it."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}
        self._lock = Lock()
        for part in filter(None, os.environ.get("FAKE_TRTLLM_FAULTS", "").split(",")):
            step, _, times = part.strip().partition(":")
            self.arm(step, float(times) if times else float("inf"))

    def arm(self, step: str, times: float = float("inf")) -> None:
        """Let the next ``times`` at ``step`` fail.

        Raises:
            ValueError: there is no such step.
        """
        if step not in STEPS:
            raise ValueError(f"fault {step!r}: expected one of {', '.join(STEPS)}")
        with self._lock:
            self._left[step] = times

    def strikes(self, step: str) -> bool:
        """Whether it fails this time."""
        with self._lock:
            left = self._left.get(step, 0)
            self._left[step] = max(left - 1, 0)
            return left > 0
