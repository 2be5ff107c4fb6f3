"""The replay store: ids that may be used once, such as those of assertions, until they expire (RFC 7523 section 3).

In the database: the second insert of an id fails, on every worker and machine. ``replay_store_redis`` is the other
store.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.engine import Engine

from app.database.circuit_breaker import WRITING, DatabaseCircuitBreaker
from app.database.engine import delete_in_batches, dialect_insert, reading_engine, write
from app.database.models import UsedAssertionRow
from app.types import Clock


class ReplayStore(Protocol):
    """Remembers used ids."""

    def use(self, issuer: str, jti: str, issued_at: int, until: int) -> bool:
        """Use the id ``jti`` of ``issuer``; return whether it was unused.

        :param issued_at: ``iat`` of the assertion, in seconds since 1970.
        :param until: seconds since 1970 from which the assertion is refused anyway.
        :raises ServiceUnavailable: that cannot be known now.
        """
        ...

    def poll(self) -> None:
        """Check the store, between requests."""
        ...

    def delete_expired(self) -> None:
        """Delete the ids of expired assertions.

        :raises SQLAlchemyError: the database does not answer.
        """
        ...

    @property
    def is_unavailable(self) -> bool:
        """Whether the last call failed."""
        ...


class DatabaseReplayStore:
    """Stores used ids in the database.

    :param circuit_breaker: guards the database.
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
        with self._circuit_breaker.allow_blocking(WRITING):
            return write(self._engine, lambda connection: bool(connection.execute(used).first()))

    def was_used_since(self, moment: int) -> bool:
        """Return whether an id is stored that expires at ``moment`` or later.

        :raises ServiceUnavailable: that cannot be known now.
        """
        found = select(UsedAssertionRow.key).where(UsedAssertionRow.exp.between(moment, LAST_SECOND)).limit(1)
        with self._circuit_breaker.allow_blocking(), reading_engine(self._engine).connect() as connection:
            return connection.execute(found).first() is not None

    def poll(self) -> None:
        """Do nothing: the circuit breaker probes the database."""

    def delete_expired(self) -> None:
        """See :meth:`ReplayStore.delete_expired`."""
        now = int(self._clock().timestamp())
        delete_in_batches(self._engine, UsedAssertionRow, UsedAssertionRow.exp < now)


SKEW_SECONDS = 60
"""How far a client's clock may differ from ours."""

REMEMBERED_LONGER_SECONDS = 60
"""A used id is remembered a little longer than it is valid: our machines' clocks may differ too."""

JTI_MAX_CHARACTERS = 255

LAST_SECOND = 253402300799
"""The end of the year 9999. An id that expires later is not an assertion's."""


def has_jti(claims: Mapping[str, Any]) -> bool:
    """Return whether ``claims`` have an id of allowed length."""
    jti = claims.get("jti")
    return isinstance(jti, str) and 1 <= len(jti) <= JTI_MAX_CHARACTERS


def key_of(issuer: str, jti: str) -> str:
    """Return a key of fixed length for any id. JSON, so that no two pairs have the same key."""
    return hashlib.sha256(json.dumps([issuer, jti]).encode()).hexdigest()
