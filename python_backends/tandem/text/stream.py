"""The text of an answer while its tokens come."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tandem.text.stop_words import StopWords
from tandem.text.token_table import TokenTable


class TextStream:
    """Tokens in, whole characters out, cut before the first stop word. For one answer; not shared between threads.

    At most three bytes (a character not yet whole) and the beginning of a stop word are held back. The pieces of
    ``push`` and ``flush``, joined, are the text decoded whole, up to the stop word: the one that ends first, the
    longest of those that end together. Where the tokens' bytes are not UTF-8, U+FFFD stands in their place.
    """

    def __init__(self, table: TokenTable, stop_words: Sequence[str] = (), min_tokens: int = 0) -> None:
        """Stop words that end within the first ``min_tokens`` tokens count as plain text.

        Raises:
            TandemError: ``invalid_request``: a stop word is empty.
        """
        self._table = table
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_first_character = True
        self._stop_words = StopWords(stop_words) if stop_words else None
        self._min_tokens = min_tokens
        self._state = 0
        self._held = ""
        self.num_tokens: int = 0
        """Tokens taken; with a stop word, up to the token that completed it."""
        self.stop_word: str | None = None
        """The stop word that ended the answer."""

    @property
    def stopped(self) -> bool:
        """A stop word has come; what follows is ignored."""
        return self.stop_word is not None

    def push(self, token_ids: Sequence[int]) -> str:
        """Take tokens; returns the text that may leave now."""
        if self._stop_words is None:
            self.num_tokens += len(token_ids)
            return self._decode(self._table.join(token_ids))
        pieces = []
        for token_id in token_ids:
            if self.stopped:
                break
            self.num_tokens += 1
            pieces.append(self._search(self._decode(self._table.join((token_id,)))))
        return "".join(pieces)

    def flush(self) -> str:
        """At the end of the answer: the text that was held back."""
        if self.stopped:
            return ""
        rest = self._search(self._decode(b"", final=True)) + self._held
        self._held, self._state = "", 0
        return rest

    def _decode(self, data: bytes, final: bool = False) -> str:
        text = self._characters.decode(data, final)
        if text and self._at_first_character:
            self._at_first_character = False
            if self._table.drops_first_space:
                return text.removeprefix(" ")
        return text

    def _search(self, text: str) -> str:
        """What may leave of the held text and ``text``."""
        if self._stop_words is None:
            return text
        begin, whole = len(self._held), self._held + text
        for i, char in enumerate(text, start=begin + 1):
            self._state = self._stop_words.step(self._state, char)
            matched = self._stop_words.matched(self._state)
            if matched and self.num_tokens > self._min_tokens:
                self.stop_word, self._held = whole[i - matched : i], ""
                return whole[: i - matched]
        keep = len(whole) - self._stop_words.held(self._state)
        self._held = whole[keep:]
        return whole[:keep]
