"""A client as the code behind Triton's edge sees it: keeps what was sent, and complains of anything after the end."""

from __future__ import annotations

from tandem.api.tensors import Array
from tandem.errors import TandemError


class Channel:
    """A ``Responder``. Set ``left`` to have the client go."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Array]] = []
        self.error: TandemError | None = None
        self.left = False
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, tensors: dict[str, Array], *, final: bool) -> None:
        assert not self._closed, f"sent after the end: {tensors}"
        self.sent.append(tensors)
        self._closed = final

    def fail(self, error: TandemError) -> None:
        assert not self._closed, f"failed after the end: {error}"
        self.error = error
        self._closed = True

    def is_cancelled(self) -> bool:
        return self.left

    def ids(self) -> list[int]:
        """All token ids that came."""
        return [int(i) for tensors in self.sent if "output_ids" in tensors for i in tensors["output_ids"].reshape(-1)]

    def text(self) -> str:
        """All text that came."""
        return "".join(t["text_output"].item().decode() for t in self.sent if "text_output" in t)

    def fact(self, name: str) -> object:
        """A fact of the final response."""
        assert self._closed
        value = self.sent[-1][name].item()
        return value.decode() if isinstance(value, bytes) else value
