"""Reading the Triton server's log: how far it is, and why it ended."""

from __future__ import annotations

import re
from pathlib import Path

_LOADED = re.compile(r"""successfully loaded ['"]?(\w+)""")
_FAILED = re.compile(r"failed to load '(\w+)' version \d+: (.*)")
_BIND = re.compile(r"(failed to start \w+ (?:service|server)[^\n]*|Socket '[^']+' already in use[^\n]*)", re.IGNORECASE)
_LIBRARY = re.compile(r"(error while loading shared libraries: [^\n]*)")
_ERROR = re.compile(r"^(?:\[libprotobuf ERROR [^\]]*\] |E\d{4} \S+ +\d+ \S+\] |error: )(.*)", re.MULTILINE)
_HARMLESS = "CudaDriverHelper"  # an error line that every machine without a GPU has
_LAST_LINES = 15


class ServerLog:
    """The log file of one server; read anew at each question, since it is short while a server starts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def progress(self, models: list[str]) -> str:
        """One line: how many of ``models`` are loaded, and which are still awaited."""
        loaded = set(_LOADED.findall(self._text()))
        waiting = [model for model in models if model not in loaded]
        if not waiting:
            return "all models loaded, opening ports"
        return f"{len(models) - len(waiting)} of {len(models)} models loaded, waiting for {', '.join(waiting)}"

    def failed_models(self) -> str | None:
        """Which models do not load and why, one a line; None as long as none has failed."""
        failed = _FAILED.findall(self._text())
        lines = [f"model {model!r} does not load: {_plain(reason)}" for model, reason in failed]
        return f"{_join(lines)}\nThe whole log: {self.path}" if lines else None

    def why_ended(self, status: int) -> str:
        """The reasons a server gave before it ended with exit ``status``, and where to read more."""
        text = self._text()
        ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        reasons = [reason for pattern in (_BIND, _LIBRARY) for reason in pattern.findall(text)]
        reasons = reasons or [line for line in _ERROR.findall(text) if _HARMLESS not in line]
        reasons = reasons or ["its last words:", *text.splitlines()[-_LAST_LINES:]]
        return f"the Triton server {ended}:\n  {_join([_plain(r) for r in reasons])}\nThe whole log: {self.path}"

    def _text(self) -> str:
        try:
            return self.path.read_text(errors="replace")
        except OSError:
            return ""


def _join(lines: list[str]) -> str:
    """The lines without repeats, indented below a first one."""
    return "\n  ".join(dict.fromkeys(lines))


def _plain(reason: str) -> str:
    """One of Triton's messages without quotes and escapes; of a Python traceback only the innermost place."""
    text = reason.strip().strip('"').removeprefix("Internal: ").replace("\\n", "\n").replace('\\"', '"')
    message, _, places = text.partition("\n\nAt:\n")
    place = f" ({places.splitlines()[0].strip()})" if places else ""
    return message.strip().replace("\n", "\n    ") + place
