"""Conversations: each turn sends all that was said before, so what the prefix cache holds decides what a turn costs."""

from __future__ import annotations

import json

from locust import between, task

from users.base import TandemUser
from users.texts import SYSTEM, question

MOST_TURNS = 6


class ChatUser(TandemUser):
    """Holds one conversation after the other, of two to six turns."""

    kind = "chat"
    weight = 5
    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        """Nothing has been said yet."""
        self._begin()

    @task
    def turn(self) -> None:
        """Say the next thing; begin anew when all is said, or where no answer came."""
        self._said.append({"role": "user", "content": question(self.draw)})
        record, answer = self.ask({"messages": json.dumps(self._said)})
        self._said.append({"role": "assistant", "content": answer})
        self._turns_left -= 1
        if record.error or not self._turns_left:
            self._begin()

    def _begin(self) -> None:
        self._said = [{"role": "system", "content": SYSTEM}]
        self._turns_left = self.draw.randint(2, MOST_TURNS)
