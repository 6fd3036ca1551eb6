"""Many requests in one moment, then silence."""

from __future__ import annotations

import gevent
from locust import task

from users.base import TandemUser
from users.clock import now
from users.texts import question

AT_ONCE = 8


class BurstUser(TandemUser):
    """Sends eight requests at once, in step with all other users of this kind: at every full ``--burst-s``."""

    kind = "burst"
    weight = 1

    def wait_time(self) -> float:
        """Until the next full period."""
        period = self.options.burst_s
        return float(period - now() % period)

    def on_start(self) -> None:
        """A connection for each request, since all run at the same time."""
        self._transports = [self.connect() for _ in range(AT_ONCE)]
        gevent.sleep(self.wait_time())

    def on_stop(self) -> None:
        """Take leave of the server."""
        for transport in (*self._transports, self.transport):
            transport.close()

    @task
    def burst(self) -> None:
        """All at once; over when the last has its answer."""
        sent = [
            gevent.spawn(self.ask, {"text_input": question(self.draw)}, transport=transport)
            for transport in self._transports
        ]
        gevent.joinall(sent, raise_error=True)
