"""Locust's users of a Tandem server: ``make locust`` has locust's web page, ``make locust LOCUST="--headless …"`` none.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless -u 20 -r 5 -t 60s [ChatUser DocumentUser …]

Kinds of users may be named; all run otherwise. Their shares of ``-u`` are their ``weight``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpc.experimental import gevent as grpc_gevent
from locust import events
from locust.env import Environment
from users.bursts import BurstUser
from users.chat import ChatUser
from users.documents import DocumentUser
from users.leavers import LeavingUser
from users.listeners import Listeners
from users.tenants import TenantUser

__all__ = ["BurstUser", "ChatUser", "DocumentUser", "LeavingUser", "TenantUser"]

grpc_gevent.init_gevent()  # before the first channel: gRPC would else block all users at once


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options of ours; locust's web page shows them too."""
    parser.add_argument("--protocol", choices=["http", "grpc"], default="http", help="What users speak")
    parser.add_argument("--grpc-url", default="127.0.0.1:8001", help="Where, with --protocol grpc")
    parser.add_argument("--answer-tokens", type=int, default=24, help="Most tokens of an answer; leavers ask for more")
    parser.add_argument("--document-words", type=int, default=1200, help="Most words of a document")
    parser.add_argument("--burst-s", type=float, default=10.0, help="Seconds from one burst to the next")
    records = "File that gets a line of JSON for each request"
    parser.add_argument("--records", type=Path, default=None, help=records, include_in_web_ui=False)


@events.init.add_listener
def listen(environment: Environment, **_: object) -> None:
    """Take note of what becomes of requests."""
    Listeners(environment, environment.parsed_options.records if environment.parsed_options else None)
