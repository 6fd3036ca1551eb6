"""Users of several tenants. That is sent only where the server takes it; records have the tenant in any case."""

from __future__ import annotations

from locust import between, task

from users.base import TandemUser
from users.texts import question
from users.transports import Transport

TENANTS: dict[str, dict[str, str | int]] = {
    "gold": {"tenant": "gold", "priority": 1},
    "silver": {"tenant": "silver", "priority": 2},
    "bronze": {"tenant": "bronze", "priority": 3},
}
"""By name: request parameters. The place to change where the server's words for them do."""
SHARES = (1, 2, 4)
"""Of the requests, in the order of ``TENANTS``."""


def takes_tenants(transport: Transport) -> bool:
    """Whether the server knows the parameters: it explains a request's route, or refuses a name."""
    inputs = {"text_input": "Hello", "explain": True, "stream": True}
    events = list(transport.stream(inputs, TENANTS["gold"]))
    return not any("unknown parameter" in event.error for event in events)


class TenantUser(TandemUser):
    """Short requests, most of them of the tenant with the least priority."""

    kind = "tenant"
    weight = 2
    wait_time = between(0.2, 1.0)

    def on_start(self) -> None:
        """See what the server takes."""
        self._known = takes_tenants(self.transport)

    @task
    def ask_as_tenant(self) -> None:
        """One request of one of them."""
        (name,) = self.draw.choices(list(TENANTS), SHARES)
        self.ask({"text_input": question(self.draw)}, tenant=name, parameters=TENANTS[name] if self._known else None)
