"""A connection to PostgreSQL that does not wait for ever.

The driver is imported here and nowhere else, and this where a database is PostgreSQL: it takes a while.
"""

from typing import Any

import psycopg

ANSWER_SECONDS = 4.0
"""How long we wait for PostgreSQL to say anything: a frozen server ends no statement, a lost network says nothing."""


class DatabaseSilent(psycopg.OperationalError):
    """PostgreSQL has not answered for :data:`ANSWER_SECONDS`; the connection is closed."""

    was_silent = True


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that does not wait for ever."""

    answer_seconds: float | None = ANSWER_SECONDS

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Let ``gen`` run to its end.

        :raises DatabaseSilent: it took longer than ``answer_seconds``.
        """
        if timeout is not None or self.answer_seconds is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.answer_seconds)
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - Ours to convert to a public one, says its docstring.
            self.pgconn.finish()
            raise DatabaseSilent(f"no answer within {self.answer_seconds:g} s") from None
