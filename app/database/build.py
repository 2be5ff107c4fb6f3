"""Builds the database of an application: called once, by ``create_app``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Flask
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session

from app.config.settings import Settings
from app.database import engine as engines
from app.database.circuit_breaker import DatabaseCircuitBreaker, Tracing
from app.database.models import db
from app.database.prepared_query import ThreadLocalConnections

if TYPE_CHECKING:
    from app.database.redis import RedisAccess


@dataclass(frozen=True, slots=True)
class Database:
    """The ways to the database.

    :param engine: for background tasks.
    :param session: for management; needs an application context.
    :param connections: for the queries of every request.
    :param circuit_breaker: fails requests fast while the database does not respond.
    :param redis: opens clients of Redis, if the settings name one.
    """

    engine: Engine
    session: scoped_session[Any]
    connections: ThreadLocalConnections
    circuit_breaker: DatabaseCircuitBreaker
    redis: "RedisAccess | None"


def build(app: Flask, settings: Settings, *, traced_by: Tracing) -> Database:
    """Configure the engine of ``app``. Nothing connects yet.

    :param traced_by: makes the trace spans of queries.
    """
    engines.install(app, settings)
    with app.app_context():
        return Database(
            db.engine,
            db.session,
            ThreadLocalConnections(db.engine),
            DatabaseCircuitBreaker(traced_by),
            _redis_of(settings, traced_by),
        )


def _redis_of(settings: Settings, traced_by: Tracing) -> "RedisAccess | None":
    if settings.redis_url is None:
        return None
    from app.database.redis import RedisAccess  # noqa: PLC0415 - The driver is loaded only where it is used.

    return RedisAccess(settings.redis_url.get_secret_value(), traced_by)
