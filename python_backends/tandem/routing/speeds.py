"""How fast workers are, measured from the counters in their reports; nothing of it is configured."""

from __future__ import annotations

import math

from tandem.messages import Load

MEMORY_S = 30.0
"""Busy time after which a measurement counts 1/e."""
KNEE_TOKENS = 64.0
"""A prefill step is taken to need as long for whatever it does as for so many tokens, as long as steps have been too
much alike to tell. A GPU reads its weights in the time of some 300 (operations per byte), a CPU in that of some 10."""
LEAST_SHARE = 0.1
"""Of that, a token takes at least so much, however the measurements scatter."""


class Mean:
    """A mean over the last busy half minute or so."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0.0
        """Of things, and ``total`` of what they came to; what is long ago counts less."""

    def add(self, total: float, count: float, seconds: float) -> None:
        """``count`` things came to ``total``; a worker was busy with them for ``seconds``."""
        if count <= 0 or seconds <= 0:
            return  # nothing was done, or the counters began anew
        keep = math.exp(-seconds / MEMORY_S)
        self.total = keep * self.total + total
        self.count = keep * self.count + count

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.count > 0

    @property
    def value(self) -> float:
        """The mean; ``known`` must hold."""
        return self.total / self.count


class PrefillSteps:
    """How long prefill steps take, over the last busy half minute or so.

    What they take beside their tokens is told by the straight line of least squares through all steps, with one step of
    ``KNEE_TOKENS`` more or less than the others believed in beforehand: steps that are alike do not tell it.
    """

    def __init__(self) -> None:
        self._seconds, self._tokens, self._squares, self._products = Mean(), Mean(), Mean(), Mean()
        """Per step: of seconds, of tokens, of tokens squared, and of tokens times seconds."""

    def add(self, seconds: float, tokens: float, steps: float) -> None:
        """So many ``steps`` have read ``tokens`` in ``seconds``."""
        if tokens <= 0 or steps <= 0:
            return  # nothing was done, or the counters began anew
        self._seconds.add(seconds, steps, seconds)
        self._tokens.add(tokens, steps, seconds)
        self._squares.add(tokens * tokens / steps, steps, seconds)
        self._products.add(tokens * seconds / steps, steps, seconds)

    @property
    def known(self) -> bool:
        """Whether anything was measured; must hold for all that follow."""
        return self._seconds.known

    @property
    def step_s(self) -> float:
        """Seconds per step."""
        return self._seconds.value

    @property
    def token_s(self) -> float:
        """Seconds per token: of prompts like these."""
        return self._seconds.total / self._tokens.total

    @property
    def more_s(self) -> float:
        """Seconds that a step takes more for each token that it reads more: of far longer prompts than these. Above 0,
        and at most ``token_s``."""
        tokens, step_s = self._tokens.value, self._seconds.value
        believed = step_s / (KNEE_TOKENS + tokens)
        variance = max(0.0, self._squares.value - tokens * tokens)
        covariance = self._products.value - tokens * step_s
        weight = KNEE_TOKENS * KNEE_TOKENS / self._seconds.count
        slope = (covariance + weight * believed) / (variance + weight)
        return min(max(slope, LEAST_SHARE * believed), self.token_s)


class Speeds:
    """What was measured of one worker, or of many together."""

    def __init__(self) -> None:
        self.prefill = PrefillSteps()
        self.step = Mean()
        """Seconds per decode step."""
        self.batch = Mean()
        """Sequences in a decode step."""
        self.pull = Mean()
        """Seconds per byte of KV that comes from another worker, confirmation included."""

    def update(self, last: Load, load: Load) -> None:
        """Take in what a worker has done between two reports."""
        seconds = load.prefill_seconds - last.prefill_seconds
        self.prefill.add(seconds, load.prefill_tokens - last.prefill_tokens, load.prefill_steps - last.prefill_steps)
        seconds = (load.step_seconds - load.prefill_seconds) - (last.step_seconds - last.prefill_seconds)
        steps = (load.steps - load.prefill_steps) - (last.steps - last.prefill_steps)
        self.step.add(seconds, steps, seconds)
        self.batch.add(steps * max(1, load.running), steps, seconds)
        seconds = load.pull_seconds - last.pull_seconds
        self.pull.add(seconds, load.bytes_pulled - last.bytes_pulled, seconds)
