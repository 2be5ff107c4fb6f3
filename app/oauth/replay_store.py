"""What may be used once: the ids of assertions, each until the assertion would have expired (RFC 7523 section 3).

In the database: one insert for each, and whoever inserts second has been beaten to it. That settles it for all workers
and machines. What has expired is removed by itself. ``replay_redis`` is the other home.
"""

import hashlib
import json
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.engine import Engine

from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.engine import delete_in_batches, dialect_insert, reading_engine, writing_engine
from app.database.models import UsedAssertionRow
from app.types import Clock


class ReplayStore(Protocol):
    """Remembers what was used."""

    def use(self, issuer: str, jti: str, issued_at: int, until: int) -> bool:
        """Use the id ``jti`` of ``issuer``; whether nobody can have before.

        :param issued_at: ``iat`` of the assertion, in seconds since 1970.
        :param until: seconds since 1970, from when on the assertion is refused by itself.
        :raises ServiceUnavailable: that cannot be known now.
        """
        ...

    def poll(self) -> None:
        """See how the store is, between requests."""
        ...

    def delete_expired(self) -> None:
        """Remove what is refused by itself.

        :raises SQLAlchemyError: the database does not answer.
        """
        ...

    @property
    def is_unavailable(self) -> bool:
        """Whether it did not answer when it was last asked."""
        ...


class DatabaseReplayStore:
    """Remembers in the database.

    :param gate: the way to it.
    """

    is_unavailable = False  # Without the database there is no server: its own check tells that.

    def __init__(self, engine: Engine, circuit_breaker: DatabaseCircuitBreaker, clock: Clock) -> None:
        self._engine = engine
        self._circuit_breaker = circuit_breaker
        self._clock = clock

    def use(self, issuer: str, jti: str, issued_at: int, until: int) -> bool:  # noqa: ARG002 - No matter: all is here.
        """See :meth:`ReplayStore.use`."""
        new = dialect_insert(self._engine, UsedAssertionRow).values(key=key_of(issuer, jti), exp=until)
        used = new.on_conflict_do_nothing(index_elements=["key"]).returning(UsedAssertionRow.key)
        with self._circuit_breaker.allow_blocking(), writing_engine(self._engine).begin() as connection:
            return connection.execute(used).first() is not None

    def was_used_since(self, moment: int) -> bool:
        """Whether something is remembered that is not refused by itself at ``moment``.

        :raises ServiceUnavailable: that cannot be known now.
        """
        found = select(UsedAssertionRow.key).where(UsedAssertionRow.exp.between(moment, LAST_SECOND)).limit(1)
        with self._circuit_breaker.allow_blocking(), reading_engine(self._engine).connect() as connection:
            return connection.execute(found).first() is not None

    def poll(self) -> None:
        """Nothing to see: the gate looks after the database."""

    def delete_expired(self) -> None:
        """See :meth:`ReplayStore.delete_expired`."""
        now = int(self._clock().timestamp())
        delete_in_batches(self._engine, UsedAssertionRow.key, UsedAssertionRow.exp < now)


SKEW_SECONDS = 60
"""How far a client's clock may be from ours: what it says of its assertions may be so wrong."""

LAST_SECOND = 253402300799
"""The last of the year 9999. What is remembered longer than that is no assertion."""


def key_of(issuer: str, jti: str) -> str:
    """Of a fixed length, whatever a client calls its assertions; JSON, so that no two pairs meet."""
    return hashlib.sha256(json.dumps([issuer, jti]).encode()).hexdigest()
