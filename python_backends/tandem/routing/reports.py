"""Where a reader stands in the numbered changes of a worker's prefix cache: what a report has that is new to it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tandem.messages import KvEvent, KvReport


class News(msgspec.Struct, frozen=True):
    """What a report says that was not known before."""

    events: Sequence[KvEvent]
    replaces: bool = False
    """All that was known is void; ``events`` are everything there is."""


class ReportCursor:
    """Reads the reports of one epoch, which may come doubled, late, or not at all."""

    def __init__(self) -> None:
        self.next_number = 1
        """Of the first change that has not been read: what to ask for in ``Poll.kv_from``."""

    def read(self, report: KvReport) -> News | None:
        """The new part of ``report``; None where there is none, or where changes before it are missing."""
        if report.is_snapshot:
            if report.first < self.next_number:
                return None
            self.next_number = report.first + 1
            return News(report.events, replaces=True)
        known = self.next_number - report.first
        if not 0 <= known < len(report.events):
            return None
        self.next_number = report.first + len(report.events)
        return News(report.events[known:] if known else report.events)
