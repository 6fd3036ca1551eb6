"""Long prompts that nobody has sent before, with short answers: work for prefill."""

from __future__ import annotations

from locust import between, task

from users.base import TandemUser
from users.texts import document


class DocumentUser(TandemUser):
    """Asks about one long document after the other."""

    kind = "document"
    weight = 1
    wait_time = between(1.0, 4.0)

    @task
    def ask_about(self) -> None:
        """A document, and a question at its end."""
        words = self.draw.randint(self.options.document_words // 2, self.options.document_words)
        self.ask({"text_input": document(self.draw, words) + "\n\nIn one sentence, this text says that"})
