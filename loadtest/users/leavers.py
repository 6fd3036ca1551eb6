"""Users who go before the answer has ended."""

from __future__ import annotations

from locust import between, task

from users.base import TandemUser
from users.texts import question


class LeavingUser(TandemUser):
    """Reads a part of a long answer and drops the stream: finish reason ``left``, which is no failure."""

    kind = "leaver"
    weight = 2
    wait_time = between(0.5, 3.0)

    @task
    def ask_and_leave(self) -> None:
        """Leave at a random token."""
        tokens = 4 * self.options.answer_tokens
        inputs = {"text_input": question(self.draw), "max_tokens": tokens, "ignore_eos": True}
        self.ask(inputs, leave_after=self.draw.randint(1, tokens // 2))
