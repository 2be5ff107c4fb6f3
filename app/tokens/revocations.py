"""Revocations: of single tokens until they would have expired, and of all tokens of a client until a moment.

Nothing is stored for a token that was not revoked. The status of a token is one query. The feed for offline
verifiers is left to ``revocation_feed``.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, String, Text, bindparam, case, cast, func, select
from sqlalchemy.engine import Connection, Engine

from app.config.values import LONGEST_LIFETIME_SECONDS
from app.database.circuit_breaker import WRITING, DatabaseCircuitBreaker
from app.database.engine import delete_in_batches, dialect_insert, reading_engine, write
from app.database.models import ClientRow, RevokedTokenRow, UTCDateTime
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections
from app.reasons import TokenReason
from app.types import DEFAULT_AUDIENCE, Clock

LEEWAY = timedelta(minutes=5)
"""How long after its expiry a revoked token is remembered: a verifier's clock may be slow."""

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Before any revocation."""

_DEFAULT = frozenset({DEFAULT_AUDIENCE})
_AUDIENCES_KEPT = 1024

# An unknown client and an unknown token give a row of NULLs too.
_ASKED = select(
    bindparam("client_id", type_=String).label("client_id"), bindparam("jti", type_=String).label("jti")
).subquery("asked")
_FATE: Any = (
    select(
        ClientRow.client_id,
        ClientRow.disabled_at,
        ClientRow.deleted_at,
        ClientRow.tokens_not_before,
        RevokedTokenRow.jti,
    )
    .select_from(_ASKED)
    .outerjoin(ClientRow, ClientRow.client_id == _ASKED.c.client_id)
    .outerjoin(RevokedTokenRow, RevokedTokenRow.jti == _ASKED.c.jti)
)


# All that the feed contains, and a version that changes with it.
_AUDIENCES = cast(RevokedTokenRow.audiences, Text).label("audiences")
_IS_LIVE = RevokedTokenRow.exp > bindparam("now", type_=BigInteger)
_LIVE = select(RevokedTokenRow.jti, RevokedTokenRow.exp, _AUDIENCES).where(
    _IS_LIVE,
    RevokedTokenRow.revoked_at >= bindparam("since", type_=UTCDateTime),
    RevokedTokenRow.client_id.not_in(bindparam("client_ids", expanding=True)),
)
_CLIENTS_WITH_MORE_THAN = (
    select(RevokedTokenRow.client_id)
    .where(_IS_LIVE)
    .group_by(RevokedTokenRow.client_id)
    .having(func.count() > bindparam("most", type_=BigInteger))
)
_AUDIENCES_OF_CLIENTS = (
    select(RevokedTokenRow.client_id, _AUDIENCES)
    .where(_IS_LIVE, RevokedTokenRow.client_id.in_(bindparam("client_ids", expanding=True)))
    .group_by(RevokedTokenRow.client_id, _AUDIENCES)
)
_CLIENTS = select(
    ClientRow.client_id,
    ClientRow.tokens_not_before,
    cast(ClientRow.audiences_ever, Text).label("audiences_ever"),
    # The previous release does not store the audiences that a client once had.
    case((ClientRow.deleted_at.is_(None), cast(ClientRow.audiences, Text))).label("audiences"),
).where(ClientRow.tokens_not_before > bindparam("since", type_=UTCDateTime))
_VERSION = select(
    select(func.count()).select_from(RevokedTokenRow).scalar_subquery().label("tokens"),
    select(func.max(RevokedTokenRow.revoked_at)).scalar_subquery().label("latest_token"),
    select(func.count())
    .select_from(ClientRow)
    .where(ClientRow.tokens_not_before.is_not(None))
    .scalar_subquery()
    .label("clients"),
    select(func.max(ClientRow.tokens_not_before)).scalar_subquery().label("latest_client"),
)


@dataclass(frozen=True, slots=True)
class RevokedToken:
    """A token that is refused although it has not expired.

    :param exp: its expiry, in seconds since 1970.
    """

    jti: str
    client_id: str
    audiences: tuple[str, ...]
    exp: int


class Revocations:
    """Revocations in the database.

    :param circuit_breaker: guards the database.
    """

    def __init__(
        self, engine: Engine, connections: ThreadLocalConnections, circuit_breaker: DatabaseCircuitBreaker, clock: Clock
    ) -> None:
        self._engine = engine
        self._circuit_breaker = circuit_breaker
        self._clock = clock
        self._revocation_reason = PreparedQuery(connections, _FATE)

    def reason_against(self, client_id: str, jti: str, issued_at: datetime) -> TokenReason | None:
        """Return why a valid token is revoked; ``None`` if it is not.

        :param issued_at: its ``iat``.
        :raises ServiceUnavailable: the database did not answer.
        """
        (row,) = self._revocation_reason.execute_through(self._circuit_breaker, {"client_id": client_id, "jti": jti})
        reasons = {
            TokenReason.UNKNOWN_CLIENT: row.client_id is None,
            TokenReason.DELETED_CLIENT: row.deleted_at is not None,
            TokenReason.DISABLED_CLIENT: row.disabled_at is not None,
            TokenReason.TOKENS_REVOKED: row.tokens_not_before is not None and issued_at <= row.tokens_not_before,
            TokenReason.REVOKED_TOKEN: row.jti is not None,
        }
        return next((reason for reason, applies in reasons.items() if applies), None)

    def revoke(self, token: RevokedToken, within: Callable[[Connection], None] | None = None) -> None:
        """Revoke ``token`` until it would have expired. Revoking twice changes nothing.

        :param within: runs in the same transaction.
        :raises ServiceUnavailable: the database did not store it.
        """
        row = dialect_insert(self._engine, RevokedTokenRow).values(
            jti=token.jti,
            client_id=token.client_id,
            audiences=list(token.audiences),
            exp=token.exp,
            revoked_at=self._clock(),
        )

        def store(connection: Connection) -> None:
            connection.execute(row.on_conflict_do_nothing(index_elements=["jti"]))
            if within:
                within(connection)

        with self._circuit_breaker.allow_blocking(WRITING):
            write(self._engine, store)

    def version(self) -> tuple[Any, ...]:
        """Return a value that changes when :meth:`live` or :meth:`clients` grows.

        :raises ServiceUnavailable: the database did not answer.
        """
        with self._circuit_breaker.allow_blocking(), reading_engine(self._engine).connect() as connection:
            return tuple(connection.execute(_VERSION).one())

    def live(
        self, since: datetime = UNIX_EPOCH, *, without_clients: Collection[str] = ()
    ) -> Sequence[tuple[str, int, frozenset[str]]]:
        """Return every revoked token that has not expired: ``jti``, ``exp``, audiences.

        :param since: only those that were revoked then or later.
        :param without_clients: ids of clients whose tokens are left out.
        :raises ServiceUnavailable: the database did not answer.
        """
        chosen = {"now": self._live_after(), "since": since, "client_ids": list(without_clients)}
        with self._circuit_breaker.allow_blocking(), reading_engine(self._engine).connect() as connection:
            return [(jti, exp, _read(audiences)) for jti, exp, audiences in connection.execute(_LIVE, chosen)]

    def clients_with_more_than(self, most: int) -> Mapping[str, frozenset[str]]:
        """Return the clients with more than ``most`` revoked tokens that have not expired, and these tokens' audiences.

        :raises ServiceUnavailable: the database did not answer.
        """
        now = self._live_after()
        found: dict[str, frozenset[str]] = {}
        with self._circuit_breaker.allow_blocking(), reading_engine(self._engine).connect() as connection:
            clients = connection.scalars(_CLIENTS_WITH_MORE_THAN, {"now": now, "most": most}).all()
            chosen = {"now": now, "client_ids": clients}
            for client_id, audiences in connection.execute(_AUDIENCES_OF_CLIENTS, chosen) if clients else ():
                found[client_id] = found.get(client_id, frozenset()) | _read(audiences)
        return found

    def _live_after(self) -> int:
        return int((self._clock() - LEEWAY).timestamp())

    def count_live(self) -> int:
        """Count the revoked tokens that have not expired.

        :raises SQLAlchemyError: the database does not answer.
        """
        counted = select(func.count()).select_from(RevokedTokenRow).where(_IS_LIVE)
        with reading_engine(self._engine).connect() as connection:
            return connection.scalar(counted, {"now": self._live_after()}) or 0

    def clients(self) -> Sequence[tuple[str, datetime, frozenset[str]]]:
        """Return every client with revoked tokens that may not have expired: id, until when, audiences.

        :raises ServiceUnavailable: the database did not answer.
        """
        since = self._clock() - LEEWAY - timedelta(seconds=LONGEST_LIFETIME_SECONDS)
        with self._circuit_breaker.allow_blocking(), reading_engine(self._engine).connect() as connection:
            return [
                (client_id, until, _read(ever or "[]") | (_read(now) or _DEFAULT if now else frozenset()))
                for client_id, until, ever, now in connection.execute(_CLIENTS, {"since": since})
            ]

    def delete_expired(self) -> None:
        """Delete the revocations of expired tokens.

        :raises SQLAlchemyError: the database does not answer.
        """
        delete_in_batches(self._engine, RevokedTokenRow, RevokedTokenRow.exp <= self._live_after())


@lru_cache(maxsize=_AUDIENCES_KEPT)
def _read(audiences: str) -> frozenset[str]:
    return frozenset(json.loads(audiences))
