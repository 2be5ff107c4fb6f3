"""What may be used once: the ids of assertions, each until the assertion would have expired (RFC 7523 section 3).

One insert for each, and whoever inserts second has been beaten to it: the database settles that for all workers and
machines. What has expired is removed by itself.
"""

import hashlib
import json

from sqlalchemy.engine import Engine

from app.contracts import Clock
from app.database import delete_in_pieces, insert_or_update, writing_engine
from app.gate import DatabaseGate
from app.models import UsedAssertionRow


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
        with self._gate.asking(), writing_engine(self._engine).begin() as connection:
            return connection.execute(used).first() is not None

    def forget_expired(self) -> None:
        """Remove what is refused by itself.

        :raises SQLAlchemyError: the database does not answer.
        """
        now = int(self._clock().timestamp())
        delete_in_pieces(self._engine, UsedAssertionRow.key, UsedAssertionRow.exp < now)


def _key(issuer: str, jti: str) -> str:
    """Of a fixed length, whatever a client calls its assertions; JSON, so that no two pairs meet."""
    return hashlib.sha256(json.dumps([issuer, jti]).encode()).hexdigest()
