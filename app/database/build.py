"""Builds the database of an application: called once, by ``create_app``."""

from dataclasses import dataclass
from typing import Any

from flask import Flask
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session

from app.config.settings import Settings
from app.database import engine as engines
from app.database.circuit_breaker import DatabaseCircuitBreaker, Tracing
from app.database.models import db
from app.database.prepared_query import ThreadLocalConnections


@dataclass(frozen=True, slots=True)
class Database:
    """The ways to the database.

    :param engine: for background tasks.
    :param session: for management; needs an application context.
    :param connections: for the queries of every request.
    :param circuit_breaker: fails requests fast while the database does not respond.
    """

    engine: Engine
    session: scoped_session[Any]
    connections: ThreadLocalConnections
    circuit_breaker: DatabaseCircuitBreaker


def build(app: Flask, settings: Settings, *, traced_by: Tracing) -> Database:
    """Configure the engine of ``app``. Nothing connects yet.

    :param traced_by: makes the trace spans of queries.
    """
    engines.install(app, settings)
    with app.app_context():
        return Database(db.engine, db.session, ThreadLocalConnections(db.engine), DatabaseCircuitBreaker(traced_by))
