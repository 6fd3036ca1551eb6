"""How a journey speaks with its client."""

from __future__ import annotations

from typing import Protocol

from tandem.api.tensors import Array
from tandem.errors import TandemError


class Responder(Protocol):
    """The response channel of one request. After the final response or an error nothing more may be sent."""

    @property
    def closed(self) -> bool:
        """Whether the final response or an error has been sent."""
        ...

    def send(self, tensors: dict[str, Array], *, final: bool) -> None:
        """Send one response."""
        ...

    def fail(self, error: TandemError) -> None:
        """End with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has left; a round trip to the server, from any thread."""
        ...
