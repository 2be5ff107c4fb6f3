"""What may be used once: the ids of assertions, each until the assertion would have expired (RFC 7523 section 3).

One insert for each, and whoever inserts second has been beaten to it: the database settles that for all workers and
machines. What has expired is removed by itself.
"""

import hashlib
import json

from sqlalchemy import delete, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from app.contracts import Clock
from app.database import insert_or_update, name_of, reading_engine, writing_engine
from app.errors import ServiceUnavailable
from app.gate import DatabaseGate
from app.models import UsedAssertionRow
from app.pausing import waiting

LOOK_SECONDS = 60.0
"""How often a worker removes what has expired."""

_ROWS_AT_ONCE = 1000


class ReplayStore:
    """Remembers what was used, in the database.

    :param gate: the way to it.
    """

    def __init__(self, engine: Engine, gate: DatabaseGate, clock: Clock) -> None:
        self._engine = engine
        self._gate = gate
        self._clock = clock

    def use(self, issuer: str, jti: str, until: int) -> bool:
        """Use the id ``jti`` of ``issuer``; whether nobody has before.

        :param until: seconds since 1970, from when on the assertion is refused by itself.
        :raises ServiceUnavailable: that cannot be known now.
        """
        new = insert_or_update(self._engine, UsedAssertionRow).values(key=_key(issuer, jti), exp=until)
        used = new.on_conflict_do_nothing(index_elements=["key"]).returning(UsedAssertionRow.key)
        try:
            with self._gate.entered(), waiting, writing_engine(self._engine).begin() as connection:
                return connection.execute(used).first() is not None
        except SQLAlchemyError as error:
            raise ServiceUnavailable(f"database_{name_of(error)}") from error

    def forget_expired(self) -> None:
        """Remove what is refused by itself.

        :raises SQLAlchemyError: the database does not answer.
        """
        now = int(self._clock().timestamp())
        expired = select(UsedAssertionRow.key).where(UsedAssertionRow.exp < now).limit(_ROWS_AT_ONCE)
        while True:
            with reading_engine(self._engine).connect() as connection:
                found = connection.scalars(expired).all()
            if not found:
                return
            with writing_engine(self._engine).begin() as connection:
                connection.execute(delete(UsedAssertionRow).where(UsedAssertionRow.key.in_(found)))


def _key(issuer: str, jti: str) -> str:
    """Of a fixed length, whatever a client calls its assertions; JSON, so that no two pairs meet."""
    return hashlib.sha256(json.dumps([issuer, jti]).encode()).hexdigest()
