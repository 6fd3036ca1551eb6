"""How a prefill worker answers claims and confirmations: each question once, each repetition with the same answer."""

from __future__ import annotations

from collections import OrderedDict

from tandem.errors import TandemError
from tandem.kv.leases import LeaseTable
from tandem.messages import Claim, Claimed, Confirm, Confirmed, NotConfirmed

REMEMBERED = 4096
"""Answers kept for repeated questions; a question is repeated for as long as a transfer may take."""

Question = Claim | Confirm
Answer = Claimed | Confirmed | NotConfirmed


class Confirmations:
    """Not thread-safe: used by the transfer thread alone."""

    def __init__(self, holder: str, leases: LeaseTable) -> None:
        """``holder`` is the agent name of this worker, which the leases of this epoch are known by."""
        self._holder = holder
        self._leases = leases
        self._answers: OrderedDict[tuple[str, Question], Answer] = OrderedDict()

    def answer(self, redeemer: str, question: Question) -> Answer:
        """The answer to ``question`` of the agent called ``redeemer``. A yes to a confirmation ends the lease."""
        key = (redeemer, question)
        if key not in self._answers:
            self._answers[key] = self._decide(f"{redeemer}/{question.correlation}", question)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        return self._answers[key]

    def _decide(self, claimant: str, question: Question) -> Answer:
        try:
            if question.holder != self._holder:
                raise TandemError(
                    "handle_stale_epoch",
                    f"lease {question.lease_id} was granted by {question.holder!r}, but this is {self._holder!r}: "
                    "the worker was restarted and its KV is lost, so run the prefill again",
                )
            if isinstance(question, Claim):
                self._leases.claim(question.lease_id, claimant)
                return Claimed(correlation=question.correlation)
            self._leases.confirm(question.lease_id, claimant)
        except TandemError as refusal:
            return NotConfirmed(correlation=question.correlation, code=refusal.code, message=refusal.message)
        return Confirmed(correlation=question.correlation)
