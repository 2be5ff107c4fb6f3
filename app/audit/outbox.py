"""Events of commands, on their way to the audit log: a command has no standard output to log on, servers have.

A row in the transaction of the change itself, so that no change is without a trace; one of all workers takes it out
and tells it, with the time at which it happened, within seconds.
"""

import json
import os
import pwd
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.engine import Engine

from app.audit.events import ClientChanged, KeyRingChanged, TokenChanged
from app.database.engine import reading_engine, writing_engine
from app.database.models import OutboxRow
from app.types import Clock

DRAIN_SECONDS = 1.0
AT_ONCE = 100

WriteEvent = Callable[[datetime, str, dict[str, Any]], None]
"""Writes one event to the audit log: when it happened, its name, its facts."""


def system_user() -> str:
    """Who runs this process, and for whom: the user, and who became it with sudo."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    behind = os.environ.get("SUDO_USER", "")
    return f"{name} (sudo: {behind})" if behind.isprintable() and behind and behind != name else name


class Outbox:
    """Events that no server has told yet."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._reading = reading_engine(engine)
        self._writing = writing_engine(engine)
        self._clock = clock

    def put(self, connection: Connection, event: ClientChanged | KeyRingChanged | TokenChanged) -> None:
        """Leave ``event``, in the transaction of what it tells of."""
        facts = {name: value for name, value in asdict(event).items() if value not in (None, ())}
        row = {"happened_at": self._clock(), "event": type(event).__name__, "facts": json.dumps(facts)}
        connection.execute(insert(OutboxRow).values(**row))

    def put_alone(self, event: KeyRingChanged | TokenChanged) -> None:
        """Leave an event of what is not in the database.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._writing.begin() as connection:
            self.put(connection, event)

    def drain(self, write: WriteEvent) -> None:
        """Take out what is there and tell it; by one of all workers, whichever asks first.

        :raises SQLAlchemyError: the database does not answer.
        """
        oldest = select(OutboxRow.outbox_id).order_by(OutboxRow.outbox_id).limit(AT_ONCE)
        with self._reading.connect() as connection:
            ids = connection.scalars(oldest).all()
        if not ids:
            return
        with self._writing.begin() as connection:
            taken = delete(OutboxRow).where(OutboxRow.outbox_id.in_(ids)).returning(*OutboxRow.__table__.c)
            rows = sorted(connection.execute(taken).all(), key=lambda row: int(row.outbox_id))
            # Before the transaction ends: what cannot be told now is told later.
            for row in rows:
                write(row.happened_at, row.event, json.loads(row.facts))
