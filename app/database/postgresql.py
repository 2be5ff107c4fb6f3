"""A PostgreSQL connection that never waits for ever, and lets other threads run during long waits.

Only this module imports the driver, and it is imported only where the database is PostgreSQL: importing takes long.
"""

import select
import time
from typing import Any

import psycopg
from psycopg.waiting import Ready, Wait

from app.blocking import blocking

ANSWER_SECONDS = 4.0
"""How long to wait for PostgreSQL to send anything: a frozen server or a lost network never ends a statement."""

NEAR_SECONDS = 0.0005
"""A database that usually answers within this time is near: another thread would hardly have started."""

PATIENCE_SECONDS = 0.002
"""How long to wait for a near database before other threads may run."""

_OF_THE_LATEST = 0.1
"""Weight of the latest answer in the moving average."""

_EVENTS = {Wait.R: select.POLLIN, Wait.W: select.POLLOUT, Wait.RW: select.POLLIN | select.POLLOUT}


class DatabaseSilent(psycopg.OperationalError):
    """PostgreSQL has not answered for :data:`ANSWER_SECONDS`; the connection is closed."""

    was_silent = True


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose waits are bounded."""

    answer_seconds: float | None = ANSWER_SECONDS
    _usual_seconds = 0.0

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Run ``gen`` to its end.

        :raises DatabaseSilent: PostgreSQL did not answer within ``answer_seconds``.
        """
        if timeout is not None or self.answer_seconds is None:
            return super().wait(gen, interval, timeout)
        began = time.monotonic()
        patience = PATIENCE_SECONDS if self._usual_seconds < NEAR_SECONDS else 0.0
        try:
            state = next(gen)
            while True:
                ready = self._ready(state, patience)
                if not ready:
                    with blocking:
                        ready = self._ready(state, began + self.answer_seconds - time.monotonic())
                if not ready:
                    self.pgconn.finish()
                    raise DatabaseSilent(f"no answer within {self.answer_seconds:g} s")
                state = gen.send(ready)
        except StopIteration as ended:
            self._usual_seconds += _OF_THE_LATEST * (time.monotonic() - began - self._usual_seconds)
            return ended.value

    def _ready(self, state: Wait, seconds: float) -> Ready | int:
        """Wait until the connection can be read or written; return zero after ``seconds``."""
        poll = select.poll()
        poll.register(self.pgconn.socket, _EVENTS[state])
        ready = 0
        for _, event in poll.poll(max(0.0, seconds) * 1000):
            # Reading or writing will find out that a connection is broken.
            ready = (Ready.R if event & ~select.POLLOUT else 0) | (Ready.W if event & select.POLLOUT else 0)
        return ready
