"""The engine: SQLite embedded (WAL), PostgreSQL to grow. Tables are left to ``models``.

Reading takes no lock. A transaction that writes says so, with :func:`writing_engine` or :func:`begin_writing`.
"""

import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from flask import Flask
from sqlalchemy import ColumnElement, Connection, delete, event, func, inspect, select, tuple_
from sqlalchemy.engine import Dialect, Engine, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.orm import scoped_session

from app.config.settings import Settings
from app.config.values import PROJECT_FOLDER, parse_prepare_threshold
from app.database.models import db

BUSY_TIMEOUT_MS = 5000
"""How long a writer waits for another writer on SQLite."""

ROWS_DELETED_AT_ONCE = 1000
"""Rows that :func:`delete_in_batches` deletes per transaction."""

ROWS_WRITTEN_AT_ONCE = 200
"""Records per transaction, see :func:`batches`: other writers wait for its rows, and on SQLite for all of it."""

SQLITE_CACHE_KIB = 256
"""Page cache of one SQLite connection. Each thread has one; the system caches the file for all of them."""

POSTGRESQL_OPTIONS = {
    "application_name": "tokenhouse",
    "client_encoding": "UTF8",
    "connect_timeout": "3",
    # The kernel detects a connection whose other end has gone, even while it is idle.
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Connection options unless the URL sets them: libpq's names and units."""

POOL_SIZE = 12
"""Connections of one process: one for each request thread and for each background task that may run a query."""

MAX_AGE_SECONDS = 180
"""Maximum age of a connection. After a failover the host name resolves to another server."""

READ_ONLY_SECONDS = 1.0
"""Maximum age of a connection to a server that takes no writes: a standby, or an old primary."""

CONNECTION_FAULTS = {"25006", "26000", "42P05", "0A000", "08P01"}
"""SQLSTATEs that another connection may not have: a read-only server, a prepared statement that is missing, exists
already or is older than the table, a protocol violation."""

READ_ONLY = "tokenhouse_read_only"
"""Execution option of connections that only read, one statement at a time."""

WRITING = "tokenhouse_writing"
"""Execution option of transactions that write."""

MIGRATION_LOCK = 0x746F6B656E
"""Key of PostgreSQL's advisory lock for migrations."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_FILE = "tokenhouse_file"
_DATA_EXCEPTION = "22"


def reading_engine(engine: Engine) -> Engine:
    """Return an engine for single reading statements: no transaction, no extra round trip, no lock on SQLite."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{READ_ONLY: True})
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def writing_engine(engine: Engine) -> Engine:
    """Return an engine for transactions that write: on SQLite they take the write lock when they begin."""
    return engine.execution_options(**{WRITING: True})


def begin_writing(session: scoped_session[Any]) -> None:
    """Begin a transaction of ``session`` that writes. A reading transaction ends first: its snapshot may be old."""
    session.rollback()
    session.connection(execution_options={WRITING: True})


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """Open a connection for migrations, one process at a time: the others wait.

    Creates the file of a SQLite database, for its owner only, and its folder.
    """
    if engine.dialect.name == "sqlite":
        path = Path(str(engine.url.database))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path.parent):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            with writing_engine(engine).connect() as connection:
                yield connection
        return
    with writing_engine(engine).connect() as guard, writing_engine(engine).connect() as connection:
        for each in (guard, connection):
            # A migration takes as long as it takes, and its connections serve nothing else.
            patient: Any = each.connection.driver_connection
            each.detach()
            patient.answer_seconds = None
            each.exec_driver_sql("SET statement_timeout = 0")
            each.commit()
        # A session lock would stay with a connection that a pooler gives to other sessions.
        guard.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        yield connection
        guard.rollback()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock ``folder``: a lock on the database file would interfere with SQLite's own locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(engine: Engine, act: Callable[[Connection], Result]) -> Result:
    """Run ``act`` in a transaction that writes; retry once if the connection is to blame. Return its result.

    :raises SQLAlchemyError: the database cannot do it.
    """
    try:
        with writing_engine(engine).begin() as connection:
            return act(connection)
    except DBAPIError as error:
        if not is_stale_connection(error):
            raise
    with writing_engine(engine).begin() as connection:
        return act(connection)


def dialect_insert(engine: Engine, table: type[Any]) -> Any:
    """Return an ``INSERT`` that supports ``on_conflict_do_update``; each dialect has its own class."""
    if engine.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert  # noqa: PLC0415 - Only the one that is needed.
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]  # noqa: PLC0415
    return insert(table)


def delete_in_batches(engine: Engine, table: type[Any], condition: ColumnElement[bool]) -> None:
    """Delete all rows that meet ``condition``, a thousand per transaction: other writers wait for each transaction.

    :raises SQLAlchemyError: the database does not answer.
    """
    key = inspect(table).primary_key
    chosen = select(*key).where(condition).limit(ROWS_DELETED_AT_ONCE)
    while True:
        with reading_engine(engine).connect() as connection:
            found = [tuple(row) for row in connection.execute(chosen)]
        if not found:
            return
        with writing_engine(engine).begin() as connection:
            connection.execute(delete(table).where(tuple_(*key).in_(found)))


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Split records into as many as one transaction writes."""
    return (items[start : start + ROWS_WRITTEN_AT_ONCE] for start in range(0, len(items), ROWS_WRITTEN_AT_ONCE))


def is_locked(error: Exception) -> bool:
    """Return whether another process held SQLite's write lock for longer than a writer waits."""
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


def install(app: Flask, settings: Settings) -> None:
    """Bind the tables to the database of the settings. Nothing connects yet."""
    url = make_url(settings.database_url.get_secret_value())
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    # Statements contain client ids, and people paste secrets into the wrong field: no error or log line may quote
    # them.
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": POOL_SIZE}
    if url.get_backend_name() == "postgresql":
        options["connect_args"] = {n: value for n, value in POSTGRESQL_OPTIONS.items() if n not in url.query}
        options["pool_recycle"] = MAX_AGE_SECONDS
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db.init_app(app)
    if migrations := sys.modules.get("flask_migrate"):
        # For code that imported it to migrate in this process; the command has its own way (cli/migrations.py).
        migrations.Migrate(app, db, directory=str(PROJECT_FOLDER / "migrations"))
    with app.app_context():
        if url.get_backend_name() == "sqlite":
            _prepare_sqlite(db.engine)
        else:
            _prepare_postgresql(db.engine)


def error_class(error: Exception) -> str:
    """Return the class name of the driver's error, or of SQLAlchemy's own."""
    return type(getattr(error, "orig", None) or error).__name__


def kind_of(error: Exception) -> str:
    """Return class and SQLSTATE of the driver's error: what failures of one kind have in common."""
    driver = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    return f"{type(driver).__name__} {getattr(driver, 'sqlstate', None) or ''}".rstrip()


def describe(error: Exception) -> str:
    """Describe a database error for the operator: class, SQLSTATE and first sentence, never a parameter."""
    driver = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    sqlstate = getattr(driver, "sqlstate", None)
    diagnosis = getattr(getattr(driver, "diag", None), "message_primary", None)
    message = str(diagnosis or driver).strip().splitlines()[:1]
    if sqlstate and sqlstate.startswith(_DATA_EXCEPTION):
        # Messages of these errors quote the value.
        message = []
    # Redis quotes the command, which contains random bytes.
    shown = ("".join(c if c.isprintable() else "?" for c in part) for part in message)
    return ": ".join([kind_of(error), *shown])


def explain(error: Exception) -> str:
    """Describe a database error to the user of a command, in one line with a hint."""
    if is_locked(error):
        return f"another command has been writing to the database for {BUSY_TIMEOUT_MS // 1000} s: try again"
    message = describe(error)
    hints = (
        ("password authentication failed", "is the password in TOKENHOUSE_DATABASE_URL right?"),
        ("does not exist", "is it the right one, and has `flask db upgrade` run?"),
        ("unable to open database file", "is TOKENHOUSE_DATABASE_URL right, has `flask db upgrade` run?"),
        ("no such table", "has `flask db upgrade` run?"),
    )
    hint = next((hint for words, hint in hints if words in message), None)
    if hint is None and could_not_connect(error):
        hint = "is TOKENHOUSE_DATABASE_URL right, does it run?"
    return f"the database cannot be used ({message})" + (f": {hint}" if hint else "")


def could_not_connect(error: Exception) -> bool:
    """Return whether the connection could not be opened, or was lost."""
    failed = error if isinstance(error, DBAPIError) else error.__cause__
    return not isinstance(failed, DBAPIError) or failed.statement is None or failed.connection_invalidated


def belongs_to_connection(error: BaseException) -> bool:
    """Return whether another connection may do what the driver's ``error`` has refused."""
    return getattr(error, "sqlstate", None) in CONNECTION_FAULTS or getattr(error, "belongs_to_connection", False)


def is_stale_connection(error: DBAPIError) -> bool:
    """Return whether the connection dates from before a restart of the database: retrying once is worthwhile.

    By then the pool has dropped all connections of that age. This is cheaper than a ping before each statement.
    """
    return error.connection_invalidated and not getattr(error.orig, "was_silent", False)


def is_same_file(info: Mapping[Any, Any]) -> bool:
    """Return whether the SQLite file that a connection opened is still at its path.

    :param info: the connection's ``info``. Connections to other databases have no file.
    """
    path, opened = info.get(_FILE, (None, None))
    return path is None or _identity(path) == opened


def _parse_options(options: dict[str, Any]) -> None:
    """Convert the parameters of a URL, which are text, to what the driver expects."""
    if "prepare_threshold" in options:
        options["prepare_threshold"] = parse_prepare_threshold(options["prepare_threshold"])
    if isinstance(options.get("options"), tuple):
        # The URL repeats the parameter.
        options["options"] = " ".join(options["options"])


def _prepare_postgresql(engine: Engine) -> None:
    from app.database.postgresql import BoundedConnection  # noqa: PLC0415 - SQLite needs no driver of PostgreSQL.

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Dialect, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
        _parse_options(options)
        connection = BoundedConnection.connect(*arguments, **options)
        try:
            connection.begin_session(options.get("options", ""))
        except BaseException:
            connection.close()
            raise
        return connection

    @event.listens_for(engine, "checkout")
    def leave_a_server_that_takes_no_writes(connection: Any, record: Any, _proxy: object) -> None:
        try:
            is_read_only = connection.probe()
        except engine.dialect.loaded_dbapi.Error:
            raise DisconnectionError from None
        was_just_opened = time.time() - record.starttime < READ_ONLY_SECONDS
        if is_read_only and (connection.was_writable or not was_just_opened):
            raise DisconnectionError

    @event.listens_for(engine, "checkin")
    def give_back_what_a_pooler_lends(connection: Any, record: Any) -> None:
        # In session mode an idle connection of ours would hold a server connection of the pooler.
        if connection is not None and connection.is_pooled:
            record.invalidate()

    @event.listens_for(engine, "handle_error")
    def drop_a_connection_with_a_fault(context: ExceptionContext) -> None:
        context.is_disconnect = context.is_disconnect or belongs_to_connection(context.original_exception)


def _prepare_sqlite(engine: Engine) -> None:
    path = str(engine.url.database)

    @event.listens_for(engine, "do_connect")
    def open_what_is_there(_dialect: Dialect, _record: object, arguments: list[Any], options: dict[str, Any]) -> None:
        # SQLite would silently create a missing file: later errors would then name missing tables, not the missing
        # file.
        arguments[0] = f"file:{quote(path)}?mode=rw"
        options["uri"] = True

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        # The driver's own BEGIN comes too late: two writers that have both read would lock each other out.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
        record.info[_FILE] = path, _identity(path)

    @event.listens_for(engine, "checkout")
    def leave_a_file_that_is_gone(_connection: Any, record: Any, _proxy: object) -> None:
        # A connection keeps using a file that was deleted or replaced, and would return old data.
        if not is_same_file(record.info):
            raise DisconnectionError

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get(READ_ONLY):
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(WRITING) else "BEGIN")


def _identity(path: str) -> tuple[int, int] | None:
    """Return which file is at ``path`` now: device and inode. Takes 2 µs."""
    try:
        found = os.stat(path)  # noqa: PTH116 - On the way of each request, and pathlib doubles it.
    except OSError:
        return None
    return found.st_dev, found.st_ino
