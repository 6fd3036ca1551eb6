"""What all users have in common: they send requests, and tell locust what became of each."""

from __future__ import annotations

import random
from typing import Any

from live.record import Record, Recording
from locust import User
from locust.env import Environment

from users.clock import now
from users.transports import GrpcTransport, HttpTransport, Transport


class RequestFailed(Exception):
    """What locust counts as a failure; the text is the server's."""


class TandemUser(User):
    """A user of ``llm``. Kinds are subclasses; the requests of each are shown under its ``kind``."""

    abstract = True
    kind = ""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.draw = random.Random()
        self.options: Any = environment.parsed_options
        """Locust's own, and those of ``locustfile.py``."""
        self.transport = self.connect()

    def connect(self) -> Transport:
        """A connection of this user's own."""
        if self.options.protocol == "grpc":
            return GrpcTransport(self.options.grpc_url)
        return HttpTransport(self.host or "http://127.0.0.1:8000")

    def on_stop(self) -> None:
        """Take leave of the server."""
        self.transport.close()

    def ask(
        self,
        inputs: dict[str, Any],
        *,
        parameters: dict[str, str | int] | None = None,
        tenant: str = "",
        leave_after: int | None = None,
        transport: Transport | None = None,
    ) -> tuple[Record, str]:
        """Send one request and read its stream, or leave it after so many tokens. The record of it, and the answer."""
        began = now()
        transport = transport or self.transport
        recording = Recording(self.kind, began, began, tenant)
        error, left = "", False
        options = {"max_tokens": self.options.answer_tokens, "stream": True, **inputs}
        events = transport.stream(options, parameters or {})
        try:
            for event in events:
                recording.take(event, now())
                if leave_after is not None and recording.tokens >= leave_after and not event.finish_reason:
                    left = True
                    break
        except Exception as failure:  # whatever a client may meet is a figure of the load test
            error = f"{type(failure).__name__}: {failure}"
        finally:
            events.close()
        record = recording.end(now(), left=left, error=error)
        self._tell(transport.label, record)
        return record, recording.text

    def _tell(self, label: str, record: Record) -> None:
        """Locust's event of a request; listeners find the whole record in its ``context``."""
        self.environment.events.request.fire(
            request_type=label,
            name=record.kind,
            response_time=1e3 * record.seconds,
            response_length=record.tokens,
            exception=RequestFailed(record.error) if record.error else None,
            context={"record": record},
        )
