"""Statements that read, asked in every request: compiled once by SQLAlchemy, run by the driver itself.

SQLAlchemy's way to execute a statement costs several times what the database needs for it. Connections still come from
its pool, which opens, configures and counts them; each thread keeps one for as long as it is good, and reads without a
transaction. What is done with rows is left to the caller.
"""

import threading
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Select, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.blocking import blocking
from app.database.engine import is_where_it_was, name_of, reading_engine, was_stale
from app.errors import ServiceUnavailable


class Gate(Protocol):
    """The way to the database: :class:`app.database.circuit_breaker.DatabaseGate`."""

    def entered(self) -> AbstractContextManager[None]:
        """Ask within."""
        ...


class _Kept:
    """A connection that a thread holds on to, with its driver's own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.info = connection.info
        self.driver: Any = connection.connection.driver_connection

    def give_back(self) -> None:
        """Let the pool have it again."""
        self.connection.close()

    def throw_away(self, error: BaseException | None = None) -> None:
        """Close it for good: it is of no more use, or its pool has gone."""
        self.connection.invalidate(error)
        self.connection.close()


class KeptConnections:
    """A connection for each thread that asks, shared by all questions: the pool holds few more than there are threads.

    :param engine: whose pool they are from. When it is disposed of, so are they.
    """

    def __init__(self, engine: Engine) -> None:
        self.reading = reading_engine(engine)
        self._mine = threading.local()
        self._all: WeakSet[_Kept] = WeakSet()
        event.listen(engine, "engine_disposed", self._drop_all)

    def mine(self) -> _Kept:
        """The connection of this thread, opened if it has none that is good.

        :raises SQLAlchemyError: it cannot be opened.
        """
        kept: _Kept | None = getattr(self._mine, "kept", None)
        if kept is not None:
            if is_where_it_was(kept.info):
                return kept
            self.forget(kept)
            kept.give_back()
        with blocking:
            kept = self._mine.kept = _Kept(self.reading.connect())
        self._all.add(kept)
        return kept

    def forget(self, kept: _Kept) -> None:
        """Open another one the next time."""
        self._mine.kept = None
        self._all.discard(kept)

    def _drop_all(self, _engine: Engine) -> None:
        for kept in list(self._all):
            self._all.discard(kept)
            kept.throw_away()
        self._mine = threading.local()


class Question:
    """A statement with named parameters, none of which needs a conversion."""

    def __init__(self, connections: KeptConnections, statement: Select[Any]) -> None:
        self._connections = connections
        self._statement = statement
        dialect = connections.reading.dialect
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        """What the driver is given."""
        # Drivers differ in whether parameters have names or places.
        self._places: Sequence[str] | None = compiled.positiontup if compiled.positional else None
        columns = statement.selected_columns
        self._row = _row_type(columns.keys())
        found = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._conversions = [(place, convert) for place, convert in enumerate(found) if convert]

    def ask(self, parameters: Mapping[str, str]) -> list[Any]:
        """All rows, as named tuples.

        :raises SQLAlchemyError: as when SQLAlchemy executes the statement. A connection that was cut is not used
            again, and ``connection_invalidated`` says so.
        """
        kept = self._connections.mine()
        try:
            rows = kept.driver.execute(self.text, self.arranged(parameters)).fetchall()
        except BaseException as error:
            raise self._dropped(kept, error) from error
        return [self._converted(row) for row in rows]

    def ask_through(self, gate: Gate, parameters: Mapping[str, str]) -> Sequence[Any]:
        """All rows, or that there are none to be had now.

        A connection that was cut while nobody used it is not the database's fault: the question is asked again, on
        another one, and once more on a third, since the pool may hold several of that age.

        :raises ServiceUnavailable: the database does not answer.
        """
        try:
            with gate.entered():
                try:
                    return self.ask(parameters)
                except DBAPIError as error:
                    if not was_stale(error):
                        raise
                try:
                    return self.ask_anew(parameters)
                except DBAPIError as error:
                    if not was_stale(error):
                        raise
                    return self.ask_anew(parameters)
        except SQLAlchemyError as error:
            raise ServiceUnavailable(f"database_{name_of(error)}") from error

    def ask_anew(self, parameters: Mapping[str, str]) -> Sequence[Any]:
        """The same by SQLAlchemy's way, on no kept connection: when one is cut, the pool drops all of its age."""
        with blocking, self._connections.reading.connect() as connection:
            return connection.execute(self._statement, dict(parameters)).all()

    def arranged(self, parameters: Mapping[str, str]) -> Mapping[str, str] | tuple[str, ...]:
        """``parameters`` as the driver takes them."""
        return parameters if self._places is None else tuple(parameters[name] for name in self._places)

    def _converted(self, row: Sequence[Any]) -> Any:
        values = list(row)
        for place, convert in self._conversions:
            # No type makes anything of NULL but itself.
            if values[place] is not None:
                values[place] = convert(values[place])
        return self._row(values)

    def _dropped(self, kept: _Kept, error: BaseException) -> BaseException:
        """Let go of a connection on which something went wrong; what to raise for ``error``."""
        self._connections.forget(kept)
        dialect: Any = self._connections.reading.dialect
        driver_error: Any = dialect.loaded_dbapi.Error
        if not isinstance(error, driver_error):
            # It ended somewhere in the middle.
            kept.throw_away(error)
            return error
        is_cut = dialect.is_disconnect(error, kept.driver, None)
        if is_cut:
            kept.throw_away(error)
        else:
            kept.give_back()
        wrapped: BaseException = DBAPIError.instance(
            self.text, None, error, driver_error, hide_parameters=True, connection_invalidated=is_cut, dialect=dialect
        )
        return wrapped


def _row_type(names: Iterable[str]) -> Any:
    row: Any = namedtuple("Row", tuple(names))  # type: ignore[misc]  # noqa: PYI024 - Its fields are the statement's.
    return row._make
