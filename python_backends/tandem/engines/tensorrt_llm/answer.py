"""An answer as the library tells it, everything so far each time, as what is new in it; and where it ends."""

from __future__ import annotations

from typing import Any

from tandem.engines.tensorrt_llm.logprobs import read_logprob
from tandem.messages import AnyWork, FinishReason, TokenLogprob


class WrongAnswer(Exception):
    """The library has told something that cannot be an answer to this request."""


class Answer:
    """What has come out of one request."""

    def __init__(self, work: AnyWork, first_index: int) -> None:
        """``first_index`` is the place in the answer of the library's first token; those that ``work`` knows already
        are dropped: a generation phase tells the first token once more."""
        self._stopping, self._top = work.stopping, work.sampling.logprobs
        self._first_index = first_index
        self._end = next(iter(work.stopping.stop_token_ids), -1)
        """What the library was told as the end token."""
        self._told = len(work.output_ids)
        self.finish_reason: FinishReason | None = None
        """Why it ended by Tandem's rules; the library may not have noticed yet."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._told

    def take(self, output: Any) -> tuple[int, list[int], list[TokenLogprob] | None]:
        """New tokens in the library's output: index of the first one, the tokens, their log-probabilities if asked."""
        first = self._told
        new = list(output.token_ids[first - self._first_index :])
        if output.finish_reason == "stop" and output.stop_reason is None and self._end not in new[-1:]:
            new.append(self._end)  # some versions leave the end token out, with which the answer ends
        new = self._until_end(new)
        self._told += len(new)
        if self._top is None:
            return first, new, None
        return first, new, self._logprobs(output, first - self._first_index, new)

    def ended(self, output: Any) -> FinishReason:
        """The library has said its last: why.

        Raises:
            WrongAnswer: it gave up, by a deadline of its own.
        """
        if self.finish_reason is not None:
            return self.finish_reason
        reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length", "cancelled": "cancelled"}
        if output.finish_reason not in reasons:
            raise WrongAnswer(f"the answer ended after {self._told} tokens with {output.finish_reason!r}")
        return reasons[output.finish_reason]

    def _until_end(self, new: list[int]) -> list[int]:
        """Those up to the one that ends the answer. None come after it."""
        if self.finish_reason is not None:
            return []
        for place, token in enumerate(new):
            count = self._told + place + 1
            if count > self._stopping.min_tokens and token in self._stopping.stop_token_ids:
                self.finish_reason = "stop"
            elif count >= self._stopping.max_tokens:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                return new[: place + 1]
        return new

    def _logprobs(self, output: Any, start: int, new: list[int]) -> list[TokenLogprob]:
        """Of ``new``, which start at ``start`` of the library's tokens. A generation phase may have none for the token
        that it was given, so they are counted from the end."""
        told = output.logprobs or []
        missing = len(output.token_ids) - len(told)
        found = told[max(0, start - missing) :][: len(new)]
        if len(found) < len(new):
            raise WrongAnswer(f"it told {len(told)} log-probabilities for {len(output.token_ids)} tokens")
        return [read_logprob(token, entry, self._top or 0) for token, entry in zip(new, found, strict=True)]
