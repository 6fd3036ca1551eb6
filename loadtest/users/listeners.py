"""What becomes of a request's record: rows of locust's own statistics, and a line of the records' file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from live.record import Record
from live.record_file import to_line
from locust.env import Environment

TTFT, INTER_TOKEN, TOKENS, FINISH = "TTFT, ms", "inter-token, ms", "tokens", "finish"
"""Types of the rows that stand beside the requests' own. ``finish`` has the time of the whole request, by reason."""


class Listeners:
    """Of one locust process. Its rows are not part of locust's totals, which so stay those of requests."""

    def __init__(self, environment: Environment, records: Path | None) -> None:
        """``records``: file to append to, one JSON object a line."""
        self._environment = environment
        self._file: BinaryIO | None = records.open("ab") if records else None
        environment.events.request.add_listener(self.on_request)
        environment.events.quitting.add_listener(self.on_quitting)

    def on_request(self, name: str, context: dict[str, Any], **_: object) -> None:
        """A request has ended."""
        record: Record = context["record"]
        if record.ttft is not None:
            self._row(name, TTFT, 1e3 * record.ttft)
        for gap in record.gaps:
            self._row(name, INTER_TOKEN, 1e3 * gap)
        self._row(name, TOKENS, record.tokens)
        if record.finish:
            self._row(name, f"{FINISH} {record.finish}", 1e3 * record.seconds)
        if self._file is not None:
            self._file.write(to_line(record))

    def on_quitting(self, **_: object) -> None:
        """The last line has been written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _row(self, name: str, kind: str, value: float) -> None:
        self._environment.stats.get(name, kind).log(round(value), 0)
