"""Tracks when and from where secrets were used, and which clients were limited; writes it every few seconds.

Times are whole minutes, so a client with a thousand requests a minute causes one write per worker. A worker that is
killed loses at most :data:`FLUSH_SECONDS`; one that shuts down loses nothing. While the database is away records
wait.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, String, Update, bindparam, case, delete, func, or_, select, update
from sqlalchemy.engine import Connection, Engine

from app.database.engine import batches, dialect_insert, reading_engine, writing_engine
from app.database.models import SERVED, ClientRow, ClientSecretRow, ClientSecretUseRow, UTCDateTime
from app.types import Clock

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0

RECORD_DELAY = timedelta(seconds=60 + FLUSH_SECONDS)
"""How much later than recorded a use may have been: the rest of its minute, and the time until it was written."""

MOST_RECORDS = 10_000
"""Records that may wait in one worker. More are dropped, and that is logged."""

MOST_ADDRESSES = 20
"""The latest addresses are kept for each secret."""

_UNKNOWN_ADDRESS = "unknown"

_Use = tuple[str, str | None, str]
"""Client id, secret id if the method has secrets, source address."""


@dataclass(frozen=True, slots=True)
class _Renewal:
    """A stored digest or ciphertext, and its replacement by the first pepper or encryption key."""

    secret_id: str
    is_old: ColumnElement[bool]
    values: Mapping[str, object]

    def __repr__(self) -> str:
        """Keep digests out of tracebacks and logs."""
        return f"_Renewal({self.secret_id})"


class LastUsedTracker:
    """Records uses in this process, and writes them to the database."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._writing = writing_engine(engine)
        self._clock = clock
        self._lock = threading.Lock()
        self._minute: datetime | None = None
        self._noted: set[_Use] = set()
        self._waiting: dict[_Use, tuple[datetime, datetime]] = {}
        self._renewals: dict[str, _Renewal] = {}
        self._limited: dict[str, datetime] = {}
        self._dropped = 0

    def record(self, client_id: str, secret_id: str | None, source_address: str | None) -> None:
        """Record that a client has authenticated, with which secret if its method has secrets."""
        minute = self._clock().replace(second=0, microsecond=0)
        use = (client_id, secret_id, source_address or _UNKNOWN_ADDRESS)
        with self._lock:
            if self._minute != minute:
                self._minute, self._noted = minute, set()
            if use in self._noted:
                return
            if len(self._waiting) >= MOST_RECORDS and use not in self._waiting:
                self._dropped += 1
                return
            self._noted.add(use)
            self._wait(use, minute, minute)

    def record_limited(self, client_id: str) -> None:
        """Record that a request of a client was refused for a rate limit."""
        with self._lock:
            if len(self._limited) < MOST_RECORDS:
                self._limited[client_id] = self._clock().replace(second=0, microsecond=0)

    def limited_since(self, since: datetime, most: int) -> Sequence[str]:
        """Return the ids of clients that were refused for a rate limit, the latest first.

        :raises SQLAlchemyError: the database does not answer.
        """
        latest = select(ClientRow.client_id).where(ClientRow.limited_at >= since, SERVED)
        with reading_engine(self._engine).connect() as connection:
            return connection.scalars(latest.order_by(ClientRow.limited_at.desc()).limit(most)).all()

    def rehash(self, secret_id: str, digest: bytes, new_pepper_id: str, new_digest: bytes) -> None:
        """Record that a digest of an old pepper can be replaced."""
        values = {"digest": new_digest, "pepper_id": new_pepper_id}
        self._renew(_Renewal(secret_id, ClientSecretRow.digest == digest, values))

    def reencrypt(self, secret_id: str, encrypted: bytes, new_key_id: str, newly_encrypted: bytes) -> None:
        """Record that a ciphertext of an old key can be replaced."""
        values = {"encrypted": newly_encrypted, "encryption_key_id": new_key_id}
        self._renew(_Renewal(secret_id, ClientSecretRow.encrypted == encrypted, values))

    def _renew(self, renewal: _Renewal) -> None:
        with self._lock:
            if len(self._renewals) < MOST_RECORDS:
                self._renewals[renewal.secret_id] = renewal

    def flush(self) -> None:
        """Write the records to the database. If that fails, they are written later.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            renewals, self._renewals = self._renewals, {}
            limited, self._limited = self._limited, {}
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("%d records of last use were dropped: more than %d were waiting", dropped, MOST_RECORDS)
        try:
            # Sorted, so that no two workers deadlock.
            for uses in batches(sorted(waiting, key=_order)):
                with self._writing.begin() as connection:
                    self._write(connection, [(use, *waiting[use]) for use in uses])
                for use in uses:
                    del waiting[use]
            for client_ids in batches(sorted(limited)):
                with self._writing.begin() as connection:
                    times = [{"key": client_id, "moment": limited[client_id]} for client_id in client_ids]
                    connection.execute(_move_forward(ClientRow, "limited_at"), times)
                for client_id in client_ids:
                    del limited[client_id]
            for secret_ids in batches(sorted(renewals)):
                with self._writing.begin() as connection:
                    _replace(connection, [renewals[secret_id] for secret_id in secret_ids])
                for secret_id in secret_ids:
                    del renewals[secret_id]
        except BaseException:
            with self._lock:
                for use, (first, last) in waiting.items():
                    self._wait(use, first, last)
                self._renewals = renewals | self._renewals
                self._limited = limited | self._limited
            raise

    def _wait(self, use: _Use, first: datetime, last: datetime) -> None:
        known_first, known_last = self._waiting.get(use, (first, last))
        self._waiting[use] = min(first, known_first), max(last, known_last)

    def _write(self, connection: Connection, last_used: Sequence[tuple[_Use, datetime, datetime]]) -> None:
        clients = [{"key": use[0], "moment": last} for use, _, last in last_used]
        connection.execute(_move_forward(ClientRow), clients)
        with_secret = [(use[1], use[2], first, last) for use, first, last in last_used if use[1] is not None]
        if with_secret:
            secrets = [{"key": secret_id, "moment": last} for secret_id, _, _, last in with_secret]
            connection.execute(_move_forward(ClientSecretRow), secrets)
            names = ("secret_id", "address", "first", "last")
            uses = [{f"told_{name}": value for name, value in zip(names, use, strict=True)} for use in with_secret]
            connection.execute(_record_address(connection.engine), uses)
            _forget_addresses(connection, sorted({secret_id for secret_id, *_ in with_secret}))


def _order(use: _Use) -> tuple[str, str, str]:
    client_id, secret_id, address = use
    return client_id, secret_id or "", address


def _move_forward(table: type[ClientRow] | type[ClientSecretRow], name: str = "last_used_at") -> Update:
    """Write the time ``moment`` into a column, unless another worker has written a later one."""
    primary_key = ClientRow.client_id if table is ClientRow else ClientSecretRow.secret_id
    moment, column = bindparam("moment", type_=UTCDateTime), getattr(table, name)
    is_older = or_(column.is_(None), column < moment)
    return update(table).where(primary_key == bindparam("key"), is_older).values({name: moment})


def _record_address(engine: Engine) -> Any:
    # Selected from the secret's own row, which is locked against deletion: a deleted secret gets no row.
    values = select(
        ClientSecretRow.secret_id,
        bindparam("told_address", type_=String),
        bindparam("told_first", type_=UTCDateTime),
        bindparam("told_last", type_=UTCDateTime),
    ).where(ClientSecretRow.secret_id == bindparam("told_secret_id"))
    row = dialect_insert(engine, ClientSecretUseRow).from_select(
        ["secret_id", "source_address", "first_used_at", "last_used_at"],
        values.with_for_update(read=True, key_share=True),
    )
    known, new = ClientSecretUseRow, row.excluded
    earlier = case((new.first_used_at < known.first_used_at, new.first_used_at), else_=known.first_used_at)
    later = case((new.last_used_at > known.last_used_at, new.last_used_at), else_=known.last_used_at)
    times = {"first_used_at": earlier, "last_used_at": later}
    return row.on_conflict_do_update(index_elements=["secret_id", "source_address"], set_=times)


def _forget_addresses(connection: Connection, secret_ids: Sequence[str]) -> None:
    """Keep the latest addresses of each secret."""
    use = ClientSecretUseRow
    crowded = select(use.secret_id).where(use.secret_id.in_(secret_ids))
    for secret_id in connection.scalars(crowded.group_by(use.secret_id).having(func.count() > MOST_ADDRESSES)).all():
        mine = select(use.source_address).where(use.secret_id == secret_id)
        latest = mine.order_by(use.last_used_at.desc(), use.source_address).limit(MOST_ADDRESSES)
        kept = connection.scalars(latest).all()
        connection.execute(delete(use).where(use.secret_id == secret_id, use.source_address.not_in(kept)))


def _replace(connection: Connection, renewals: Sequence[_Renewal]) -> None:
    for renewal in renewals:
        connection.execute(
            update(ClientSecretRow)
            .where(ClientSecretRow.secret_id == renewal.secret_id, renewal.is_old)
            .values(**renewal.values)
        )
