"""An answer as it grows: tokens in, whole characters out, each token once."""

from __future__ import annotations

import time

from tandem.api.answer import Piece
from tandem.messages import Stopping, TokenLogprob, Tokens
from tandem.text.codec import TextCodec


class AnswerBuilder:
    """Collects one answer. Not thread-safe: lives in the event loop."""

    def __init__(self, codec: TextCodec, stop_words: tuple[str, ...], stopping: Stopping) -> None:
        self.token_ids: list[int] = []
        self.last_token_at: float | None = None
        self._text = codec.stream(stop_words, min_tokens=stopping.min_tokens)
        self._piece_text = ""
        self._piece_ids: list[int] = []
        self._piece_logprobs: list[TokenLogprob] = []

    @property
    def stopped(self) -> bool:
        """A stop word has come."""
        return self._text.stopped

    def push(self, tokens: Tokens) -> int:
        """Take new tokens, dropping those that came before; returns how many were new."""
        skip = len(self.token_ids) - tokens.index
        if skip < 0:
            raise ValueError(f"tokens {tokens.index} on came before token {len(self.token_ids)}")
        new = tokens.token_ids[skip:]
        if not new or self.stopped:
            return 0
        self.last_token_at = time.monotonic()
        self._piece_text += self._text.push(new)
        new = new[: self._text.num_tokens - len(self.token_ids)]  # none after the one that completed a stop word
        self.token_ids += new
        self._piece_ids += new
        if tokens.logprobs is not None:
            self._piece_logprobs += tokens.logprobs[skip : skip + len(new)]
        return len(new)

    def take_piece(self, *, final: bool = False) -> Piece | None:
        """What may leave now; None while there is no whole character. With ``final`` all that is left."""
        if final:
            self._piece_text += self._text.flush()
        elif not self._piece_text:
            return None
        piece = Piece(text=self._piece_text, token_ids=self._piece_ids, logprobs=self._piece_logprobs)
        self._piece_text, self._piece_ids, self._piece_logprobs = "", [], []
        return piece
