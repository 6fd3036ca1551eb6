"""How every process of Tandem logs: lines of text, or one JSON object a line. The section ``[logging]``.

What a line is about is told by fields, not by its message: ``fields`` for those of one line, as ``extra=about(...)``,
``bind`` for those of all lines that a task or thread says from now on.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_bound: ContextVar[Mapping[str, Any]] = ContextVar("tandem_log_fields", default={})  # noqa: B039


class Logging(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and how it looks."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: bool = False
    """Whether each request is told of when it ends: by the orchestrator, and by each worker that had a part in it."""


def start_logging(settings: Logging, **always: str | int) -> None:
    """Log to standard error from now on. ``always``: fields of every line, such as ``worker``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(always) if settings.format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


def bind(**fields: str) -> None:
    """Fields of all lines that this task, and those that it starts, log from now on; empty ones are left out."""
    _bound.set({name: value for name, value in fields.items() if value})


def about(**fields: Any) -> dict[str, Any]:
    """Fields of one line, as ``extra`` of a logging call."""
    return {"fields": fields}


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, in one line."""

    def __init__(self, always: Mapping[str, str | int]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """``time`` (UTC), ``level``, ``logger``, ``message``, the fields, and ``exception`` where there is one."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **_bound.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def label(line: str, **who: str | int) -> str:
    """A line that another process said, with ``who`` that was; what is no JSON object becomes the message of one."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return json.dumps((entry if isinstance(entry, dict) else {"message": line}) | who, ensure_ascii=False)
