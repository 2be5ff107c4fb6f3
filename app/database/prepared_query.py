"""Prepared queries: statements that every request executes, compiled once by SQLAlchemy and run by the driver itself.

SQLAlchemy's execution costs several times what the database needs for the statement. Connections still come from its
pool, which opens, configures and counts them. Each thread keeps one while it is good, and reads without a
transaction.
"""

import os
import random
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Select, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.blocking import blocking
from app.database.engine import (
    MAX_AGE_SECONDS,
    READ_ONLY_SECONDS,
    belongs_to_connection,
    error_class,
    is_same_file,
    is_stale_connection,
    reading_engine,
)
from app.errors import ServiceUnavailable
from app.reasons import RefusalReason

Parameters = Mapping[str, str | bytes]


class CircuitBreaker(Protocol):
    """What a query needs of :class:`app.database.circuit_breaker.DatabaseCircuitBreaker`."""

    def allow(self) -> AbstractContextManager[None]:
        """Make a call in this context."""
        ...


class _ThreadConnection:
    """A connection that one thread keeps, with its driver connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.info = connection.info
        self.driver: Any = connection.connection.driver_connection
        self.check: Callable[[Any, Sequence[str]], None] | None = getattr(self.driver, "check", None)
        is_writable = getattr(self.driver, "was_writable", True)
        # Randomized, so that not all connections are opened again at the same moment.
        seconds = MAX_AGE_SECONDS * random.uniform(0.8, 1.0) if is_writable else READ_ONLY_SECONDS  # noqa: S311
        self._good_until = time.monotonic() + seconds

    def is_good(self) -> bool:
        """Return whether it is below its maximum age, and its SQLite file was not replaced."""
        return time.monotonic() < self._good_until and is_same_file(self.info)

    def is_read_only(self) -> bool:
        """Return whether its database takes no writes."""
        if hasattr(self.driver, "is_read_only"):
            return bool(self.driver.is_read_only())
        path = self.connection.engine.url.database
        return path is not None and not os.access(path, os.W_OK)

    def release(self) -> None:
        """Return it to the pool."""
        self.connection.close()

    def invalidate(self, error: BaseException | None = None) -> None:
        """Close it: it is broken, or its pool has gone."""
        self.connection.invalidate(error)
        self.connection.close()


class ThreadLocalConnections:
    """One connection for each thread, shared by all queries, so that the pool holds few more than there are threads.

    :param engine: the engine of the pool. When it is disposed of, all connections are closed.
    """

    def __init__(self, engine: Engine) -> None:
        self.reading = reading_engine(engine)
        self._local = threading.local()
        self._all: WeakSet[_ThreadConnection] = WeakSet()
        event.listen(engine, "engine_disposed", self._drop_all)

    def current(self) -> _ThreadConnection:
        """Return this thread's connection; open one if it has no good one.

        :raises SQLAlchemyError: it cannot be opened.
        """
        kept: _ThreadConnection | None = getattr(self._local, "kept", None)
        if kept is not None:
            if kept.is_good():
                return kept
            self.forget(kept)
            kept.invalidate()
        with blocking:
            kept = self._local.kept = _ThreadConnection(self.reading.connect())
        self._all.add(kept)
        return kept

    def takes_writes(self) -> bool:
        """Return whether the database takes writes.

        :raises SQLAlchemyError: it cannot be reached.
        """
        kept = self.current()
        try:
            return not kept.is_read_only()
        except self.reading.dialect.loaded_dbapi.Error as error:
            self.forget(kept)
            kept.invalidate(error)
            return False

    def forget(self, kept: _ThreadConnection) -> None:
        """Open another connection the next time."""
        self._local.kept = None
        self._all.discard(kept)

    def _drop_all(self, _engine: Engine) -> None:
        for kept in list(self._all):
            self._all.discard(kept)
            kept.invalidate()
        self._local = threading.local()


class PreparedQuery:
    """A statement with named parameters that need no conversion."""

    def __init__(self, connections: ThreadLocalConnections, statement: Select[Any]) -> None:
        self._connections = connections
        self._statement = statement
        dialect = connections.reading.dialect
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        """The SQL that the driver gets."""
        events: Any = connections.reading.dispatch
        self._listeners = events.before_cursor_execute, events.after_cursor_execute
        # Drivers differ in whether parameters have names or positions.
        self._positions: Sequence[str] | None = compiled.positiontup if compiled.positional else None
        columns = statement.selected_columns
        self._names = list(columns.keys())
        self._row = _row_type(self._names)
        found = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._conversions = [(place, convert) for place, convert in enumerate(found) if convert]

    def execute(self, parameters: Parameters) -> list[Any]:
        """Return all rows, as named tuples.

        :raises SQLAlchemyError: as SQLAlchemy's execution does. A connection that was cut is not used again, and
            ``connection_invalidated`` says so.
        """
        if self._has_listeners():
            # They see what SQLAlchemy executes, and may change it: so SQLAlchemy executes it.
            return list(self.execute_on_new_connection(parameters))
        kept = self._connections.current()
        try:
            cursor = kept.driver.execute(self.text, self.arrange(parameters))
            rows = cursor.fetchall()
            if kept.check:
                kept.check(cursor, self._names)
        except BaseException as error:
            raise self._dropped(kept, error) from error
        return [self._converted(row) for row in rows]

    def execute_through(self, circuit_breaker: CircuitBreaker, parameters: Parameters) -> Sequence[Any]:
        """Return all rows, within a circuit breaker.

        A connection may have been cut while it was idle, which is no failure of the database. The query is retried
        on another connection, and once more on a third: the pool may hold several of that age.

        :raises ServiceUnavailable: the database does not answer.
        """
        attempts = [self.execute_on_new_connection, self.execute_on_new_connection, self.execute]
        try:
            with circuit_breaker.allow():
                while True:
                    try:
                        return attempts.pop()(parameters)
                    except DBAPIError as error:
                        if not attempts or not is_stale_connection(error):
                            raise
        except SQLAlchemyError as error:
            raise ServiceUnavailable(RefusalReason.DATABASE.caused_by(error_class(error))) from error

    def execute_on_new_connection(self, parameters: Parameters) -> Sequence[Any]:
        """Execute through SQLAlchemy: if that connection is cut too, the pool drops all connections of its age."""
        with blocking, self._connections.reading.connect() as connection:
            return connection.execute(self._statement, dict(parameters)).all()

    def _has_listeners(self) -> bool:
        """Return whether anybody listens to SQLAlchemy's execution events, on the engine or on all engines."""
        return bool(self._listeners[0] or self._listeners[1])

    def arrange(self, parameters: Parameters) -> Parameters | tuple[str | bytes, ...]:
        """Return ``parameters`` in the form that the driver takes."""
        return parameters if self._positions is None else tuple(parameters[name] for name in self._positions)

    def _converted(self, row: Sequence[Any]) -> Any:
        values = list(row)
        for place, convert in self._conversions:
            # No type converts NULL to anything else.
            if values[place] is not None:
                values[place] = convert(values[place])
        return self._row(values)

    def _dropped(self, kept: _ThreadConnection, error: BaseException) -> BaseException:
        """Let go of a connection after ``error``; return the exception to raise."""
        self._connections.forget(kept)
        dialect: Any = self._connections.reading.dialect
        driver_error: Any = dialect.loaded_dbapi.Error
        if not isinstance(error, driver_error):
            # The statement was interrupted midway.
            kept.invalidate(error)
            return error
        is_cut = dialect.is_disconnect(error, kept.driver, None) or belongs_to_connection(error)
        if is_cut:
            kept.invalidate(error)
        else:
            kept.release()
        wrapped: BaseException = DBAPIError.instance(
            self.text, None, error, driver_error, hide_parameters=True, connection_invalidated=is_cut, dialect=dialect
        )
        return wrapped


def _row_type(names: Iterable[str]) -> Any:
    row: Any = namedtuple("Row", tuple(names))  # type: ignore[misc]  # noqa: PYI024 - Its fields are the statement's.
    return row._make
