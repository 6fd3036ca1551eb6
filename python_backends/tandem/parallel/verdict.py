"""What mpiexec says when a job ends by itself and no rank's guard could tell why: its host cannot be reached, say."""

from __future__ import annotations

import re
from collections.abc import Sequence

Word = tuple[int | None, str]
"""A line on stderr, and the rank that said it; None: mpiexec."""

SHOWN_LINES = 3
_NOISE = re.compile(r"\[(mpiexec|proxy)[^]]*\] \w+ \(|[-=\s]*$")
"""Where in its own code Hydra was; rules and empty lines."""


def summarize(words: Sequence[Word]) -> str:
    """The first lines of substance that mpiexec said."""
    lines = [text.strip("= ") for rank, text in words if rank is None and not _NOISE.match(text)]
    return " / ".join(lines[:SHOWN_LINES])
