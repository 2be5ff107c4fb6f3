"""A PostgreSQL connection with bounded waits, which lets other threads run meanwhile and detects a lost primary.

Session settings are set after the connection is open: poolers refuse ``options`` in the startup packet.
Only this module imports the driver, and it is imported only where the database is PostgreSQL: importing takes long.
"""

import select
import time
from collections.abc import Sequence
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

STATEMENT_TIMEOUT_MS = 3000
"""How long PostgreSQL may work on one statement."""

PROBE_SECONDS = 1.0
"""How often a server that does not report its state is asked whether it takes writes."""

_IDENTITY = "SELECT pg_backend_pid(), pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean"
_REPORTED = (b"in_hot_standby", b"default_transaction_read_only")
"""What PostgreSQL 14 and later reports by itself when it changes."""

_EVENTS = {Wait.R: select.POLLIN, Wait.W: select.POLLOUT, Wait.RW: select.POLLIN | select.POLLOUT}


class DatabaseSilent(psycopg.OperationalError):
    """PostgreSQL has not answered for :data:`ANSWER_SECONDS`; the connection is closed."""

    was_silent = True


class WrongEncoding(psycopg.OperationalError):
    """The database has another encoding than UTF-8. Retrying does not help."""

    is_permanent = True


class ConnectionFault(psycopg.OperationalError):
    """The connection returned rows of another statement, or its server no longer takes writes."""

    belongs_to_connection = True


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose waits are bounded."""

    answer_seconds: float | None = ANSWER_SECONDS
    is_pooled = False
    """Whether a pooler is between us and the server: each statement may run in another session."""
    was_writable = True
    """Whether the server took writes when the connection was opened."""
    _usual_seconds = 0.0
    _is_read_only = False
    _probed_at = 0.0

    def begin_session(self, options: str) -> None:
        """Override the settings of the server, the database and the role that our statements depend on.

        :param options: ``options`` of the startup packet. A setting that it names is left alone.
        :raises WrongEncoding: the database's encoding is not UTF-8.
        """
        self.autocommit = True
        for name, value in (("DateStyle", "ISO, MDY"), ("TimeZone", "UTC")):
            # The server reports both, so a pooler tracks them and sets them for whichever session it uses.
            if (self.info.parameter_status(name) or "").split(",")[0] != value.split(",")[0]:
                self.execute(f"SET {name} TO '{value}'")
        pid, is_read_only = self.execute(_IDENTITY).fetchall()[0]
        if (encoding := self.info.parameter_status("server_encoding")) != "UTF8":
            raise WrongEncoding(
                f"the database has the encoding {encoding}, and must have UTF8: create another one, with "
                "TEMPLATE template0 ENCODING 'UTF8'"
            )
        self.was_writable = not is_read_only
        self._is_read_only, self._probed_at = is_read_only, time.monotonic()
        # A pooler reports another process id than the server. It may run the next statement in another session, where
        # session settings and named prepared statements of this one do not exist.
        self.is_pooled = pid != self.info.backend_pid
        if self.is_pooled:
            self.prepare_threshold = None
        else:
            for name, to in (("statement_timeout", STATEMENT_TIMEOUT_MS), ("search_path", '"$user", public')):
                if name not in options:
                    self.execute(f"SET {name} TO {to}")
        self.autocommit = False

    def check(self, cursor: psycopg.Cursor[Any], names: Sequence[str]) -> None:
        """Check that the rows belong to the statement, and that the server still takes writes.

        :param names: the columns of the statement.
        :raises ConnectionFault: another connection must be asked.
        """
        if self.is_pooled and [column.name for column in cursor.description or ()] != names:
            raise ConnectionFault("these are the rows of another statement")
        if self.was_writable and self.is_read_only():
            raise ConnectionFault("its server takes no writes any more")

    def is_read_only(self) -> bool:
        """Return whether the server takes no writes: as it reported with its latest answer, or as :meth:`probe` found.

        :raises psycopg.Error: the server does not answer.
        """
        reported = [self.pgconn.parameter_status(name) for name in _REPORTED]
        return self.probe() if self.is_pooled or None in reported else b"on" in reported

    def probe(self) -> bool:
        """Ask the server whether it takes no writes, unless it was asked lately. Outside transactions only.

        :raises psycopg.Error: the server does not answer.
        """
        if time.monotonic() - self._probed_at > PROBE_SECONDS:
            was_autocommit = self.autocommit
            self.autocommit = True
            self._is_read_only = bool(self.execute(_IDENTITY).fetchall()[0][1])
            self.autocommit = was_autocommit
            self._probed_at = time.monotonic()
        return self._is_read_only

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
                state = gen.send(self._wait_for(state, patience, began + self.answer_seconds))
        except StopIteration as ended:
            self._usual_seconds += _OF_THE_LATEST * (time.monotonic() - began - self._usual_seconds)
            return ended.value
        except BaseException as error:
            _end(gen, error)
            raise

    def _wait_for(self, state: Wait, patience: float, until: float) -> Ready | int:
        """Wait until the connection can be read or written.

        :param patience: for how many seconds no other thread goes on meanwhile.
        :param until: by the monotonic clock.
        :raises DatabaseSilent: it still could not; it is closed now.
        """
        if ready := self._ready(state, patience):
            return ready
        with blocking:
            ready = self._ready(state, until - time.monotonic())
        if not ready:
            self.pgconn.finish()
            raise DatabaseSilent(f"no answer within {self.answer_seconds:g} s")
        return ready

    def _ready(self, state: Wait, seconds: float) -> Ready | int:
        """Wait until the connection can be read or written; return zero after ``seconds``."""
        poll = select.poll()
        poll.register(self.pgconn.socket, _EVENTS[state])
        ready = 0
        for _, event in poll.poll(max(0.0, seconds) * 1000):
            # Reading or writing will find out that a connection is broken.
            ready = (Ready.R if event & ~select.POLLOUT else 0) | (Ready.W if event & select.POLLOUT else 0)
        return ready


def _end(gen: Any, error: BaseException) -> None:
    """Raise ``error`` in ``gen`` until it has ended: the end of a pipeline waits once more, and would be reported."""
    for _ in range(3):
        try:
            gen.throw(error)
        except BaseException:  # noqa: BLE001 - It has ended; ``error`` is raised by the caller.
            return
