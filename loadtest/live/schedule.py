"""The requests of a trace for a live server: when each is due, what it asks. No clock, no network."""

from __future__ import annotations

from dataclasses import dataclass

from live.engines import MOST_STEP_TOKENS
from tandem.engines.sim.timing import Timing, prefill_pairs, step_s
from tandem.simulation.trace import TRACE_BLOCK, TraceLine


@dataclass(frozen=True)
class Due:
    """One request."""

    at: float
    """Seconds from the beginning."""
    prompt: list[int]
    """Token ids, alike where the trace says that prompts begin alike."""
    max_tokens: int


def block_tokens(name: int, vocab_size: int) -> list[int]:
    """A block of the trace as tokens: its name in digits, then more of the same."""
    digits = []
    rest = name
    while True:
        rest, digit = divmod(rest, vocab_size)
        digits.append(digit)
        if not rest:
            break
    return [len(digits), *digits, *[digits[0]] * (TRACE_BLOCK - 1 - len(digits))]


def schedule(lines: list[TraceLine], *, speed: float, most_answer: int, vocab_size: int, context: int) -> list[Due]:
    """All requests in the order of their arrival: ``speed`` times as fast as recorded, answers cut at ``most_answer``
    tokens, prompts at what the ``context`` then leaves."""
    first = lines[0].timestamp if lines else 0.0
    found = []
    for line in lines:
        answer = max(1, min(line.output_length, most_answer))
        tokens = [token for name in line.hash_ids for token in block_tokens(name, vocab_size)]
        length = min(line.input_length, context - answer)
        found.append(Due((line.timestamp - first) / 1e3 / speed, tokens[:length], answer))
    return found


def prefill_load(due: list[Due], timing: Timing, workers: int) -> float:
    """What ``workers`` would take to read all prompts, nothing cached, over the time in which they come."""
    steps = [
        (start, min(MOST_STEP_TOKENS, len(one.prompt) - start))
        for one in due
        for start in range(0, len(one.prompt), MOST_STEP_TOKENS)
    ]
    work_s = sum(step_s(timing, n, prefill_pairs(start, n), 0) for start, n in steps)
    return work_s / workers / max(one.at for one in due)
