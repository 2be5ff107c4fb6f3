"""The outbox: carries events of commands to the audit log, which is the standard output of a server.

An event is a row in the transaction of its change, so no change goes unrecorded. Within seconds one of all workers
removes the row and writes it to the audit log, with the time of the change.
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

from app.audit.events import ApiChanged, ClientChanged, IssuerChanged, KeyRingChanged, TokenChanged
from app.database.engine import reading_engine, writing_engine
from app.database.models import OutboxRow
from app.types import Clock

DRAIN_SECONDS = 1.0
AT_ONCE = 100

Change = ApiChanged | ClientChanged | IssuerChanged | KeyRingChanged | TokenChanged

WriteEvent = Callable[[datetime, str, dict[str, Any]], None]
"""Writes one event to the audit log: time, name, fields."""


def system_user() -> str:
    """Return the user that runs this process, and the user behind sudo."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    behind = os.environ.get("SUDO_USER", "")
    return f"{name} (sudo: {behind})" if behind.isprintable() and behind and behind != name else name


class Outbox:
    """Events that no server has written yet."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._reading = reading_engine(engine)
        self._writing = writing_engine(engine)
        self._clock = clock

    def put(self, connection: Connection, event: Change) -> None:
        """Add ``event`` in the transaction of its change."""
        facts = {name: value for name, value in asdict(event).items() if value not in (None, ())}
        row = {"happened_at": self._clock(), "event": type(event).__name__, "facts": json.dumps(facts)}
        connection.execute(insert(OutboxRow).values(**row))

    def put_alone(self, event: KeyRingChanged | TokenChanged) -> None:
        """Add an event whose change is not in the database.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._writing.begin() as connection:
            self.put(connection, event)

    def drain(self, write: WriteEvent) -> None:
        """Remove waiting events and write them; each event is written by one of all workers.

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
            # Within the transaction: an event that cannot be written stays for later.
            for row in rows:
                write(row.happened_at, row.event, json.loads(row.facts))
