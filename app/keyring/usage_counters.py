"""Counts how many tokens each key has signed: in memory, added to the database every few seconds.

Operators see whether a key still signs somewhere. A worker that is killed loses the counts of a few seconds.
"""

import threading
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.engine import Engine

from app.audit.events import Event, TokenIssued
from app.database.engine import dialect_insert, reading_engine, writing_engine
from app.database.models import SigningKeyUseRow
from app.types import Clock


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """How many tokens a key has signed, and since when they are counted."""

    tokens: int
    first_used_at: datetime
    last_used_at: datetime


class KeyUsageCounters:
    """Counts issued tokens by key; a subscriber of the events."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        """Count a token, in memory."""
        if isinstance(event, TokenIssued):
            with self._lock:
                self._counted[event.kid] += 1

    def flush(self) -> None:
        """Add the counts to the database. If that fails, they are added later.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._lock:
            counted, self._counted = self._counted, Counter()
        if not counted:
            return
        try:
            self._add(counted)
        except BaseException:
            with self._lock:
                self._counted += counted
            raise

    def read(self) -> dict[str, KeyUsage]:
        """Return all counts by kid.

        :raises SQLAlchemyError: the database does not answer.
        """
        with reading_engine(self._engine).connect() as connection:
            rows = connection.execute(select(*SigningKeyUseRow.__table__.columns)).all()
        return {row.kid: KeyUsage(row.tokens, row.first_used_at, row.last_used_at) for row in rows}

    def _add(self, counted: Counter[str]) -> None:
        now = self._clock()
        with writing_engine(self._engine).begin() as connection:
            # Sorted, so that two workers never deadlock.
            for kid, tokens in sorted(counted.items()):
                row = dialect_insert(self._engine, SigningKeyUseRow).values(
                    kid=kid, tokens=tokens, first_used_at=now, last_used_at=now
                )
                added = {"tokens": SigningKeyUseRow.tokens + row.excluded.tokens, "last_used_at": now}
                connection.execute(row.on_conflict_do_update(index_elements=["kid"], set_=added))
