"""Finding stop words in text that comes piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tandem.errors import TandemError


class StopWords:
    """An automaton over all stop words (Aho and Corasick 1975): a state is the longest end of the text so far that a
    stop word begins with. Immutable; the states are the caller's, 0 at the beginning.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """
        Raises:
            TandemError: ``invalid_request``: a stop word is empty.
        """
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self._depth = [0]
        self._match = [0]
        for i, word in enumerate(words):
            if not word:
                raise TandemError("invalid_request", f"stop_words[{i}] is empty; leave it out")
            self._add(word)
        self._link()

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while state and char not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(char, 0)

    def held(self, state: int) -> int:
        """How many characters at the end of the text may yet become a stop word."""
        return self._depth[state]

    def matched(self, state: int) -> int:
        """Characters of the longest stop word that the text ends with, 0 if with none."""
        return self._match[state]

    def _add(self, word: str) -> None:
        state = 0
        for depth, char in enumerate(word, start=1):
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._fallback.append(0)
                self._depth.append(depth)
                self._match.append(0)
            state = self._next[state][char]
        self._match[state] = len(word)

    def _link(self) -> None:
        """From each state to the next shorter end of the text that a stop word begins with, shortest states first."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for char, child in self._next[state].items():
                self._fallback[child] = self.step(self._fallback[state], char)
                self._match[child] = self._match[child] or self._match[self._fallback[child]]
                waiting.append(child)
