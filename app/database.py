"""The database's settings: SQLite embedded (WAL), PostgreSQL to grow. Tables are left to ``models``."""

from typing import Any

from flask import Flask
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine, make_url

from app.models import db
from app.settings import Settings

BUSY_TIMEOUT_MS = 5000
"""How long a writer waits for another on SQLite."""

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_MS = 3000
"""A database that hangs costs a request this much and no more."""

READ_ONLY = "tokenhouse_read_only"
"""Execution option of connections that only read, one statement at a time."""


def reading_engine(engine: Engine) -> Engine:
    """Engine for single statements that read: no transaction, so no round trip for one and no lock on SQLite."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{READ_ONLY: True})
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def install(app: Flask, settings: Settings) -> None:
    """Bind the tables to the database of the settings. Nothing connects yet."""
    url = make_url(settings.database_url.get_secret_value())
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    # Statements carry client ids, and people paste secrets into the wrong field: no error or log line may quote them.
    options: dict[str, Any] = {"hide_parameters": True}
    if url.get_backend_name() == "postgresql":
        options["connect_args"] = {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
        }
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db.init_app(app)
    if url.get_backend_name() == "sqlite":
        with app.app_context():
            _prepare_sqlite(db.engine)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        # The driver's own BEGIN comes too late: two writers that have both read would lock each other out.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get(READ_ONLY):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
