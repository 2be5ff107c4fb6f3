"""Tracks how clients authenticate, and which were limited; writes it every few seconds.

That is when and from where secrets were used, and the style of assertions.

Times are whole minutes, so a client with a thousand requests a minute causes one write per worker. A worker that is
killed loses at most :data:`FLUSH_SECONDS`; one that shuts down loses nothing. While the database is away records
wait.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

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


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class AssertionStyle(NamedTuple):
    """What an assertion looked like.

    :ivar aud: ``issuer``, ``token_endpoint``, or ``both``.
    :ivar typ: the media type, or ``none``.
    """

    aud: str
    typ: str

    @property
    def is_legacy(self) -> bool:
        """Whether RFC 10070 does not allow it."""
        return self.aud != "issuer"


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
        self._noted: set[tuple[str | None, ...]] = set()
        self._waiting: dict[_Use, tuple[datetime, datetime]] = {}
        self._renewals: dict[str, _Renewal] = {}
        self._limited: dict[str, datetime] = {}
        self._assertions: dict[str, AssertionStyle] = {}
        self._legacy: dict[str, datetime] = {}
        self._dropped = 0

    def record(self, client_id: str, secret_id: str | None, source_address: str | None) -> None:
        """Record that a client has authenticated, with which secret if its method has secrets."""
        use = (client_id, secret_id, source_address or _UNKNOWN_ADDRESS)
        with self._lock:
            minute = self._begin_minute()
            if use in self._noted:
                return
            if len(self._waiting) >= MOST_RECORDS and use not in self._waiting:
                self._dropped += 1
                return
            self._noted.add(use)
            self._wait(use, minute, minute)

    def record_assertion(self, client_id: str, style: AssertionStyle) -> None:
        """Record what the assertion of a client looked like."""
        with self._lock:
            minute = self._begin_minute()
            noted = ("assertion", client_id, *style)
            if noted in self._noted or len(self._assertions) >= MOST_RECORDS:
                return
            self._noted.add(noted)
            self._assertions[client_id] = style
            if style.is_legacy:
                self._legacy[client_id] = minute

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
            assertions, self._assertions = self._assertions, {}
            legacy, self._legacy = self._legacy, {}
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("%d records of last use were dropped: more than %d were waiting", dropped, MOST_RECORDS)
        try:
            self._write(waiting, _write_uses, order=_order)
            self._write(limited, partial(_write_times, name="limited_at"))
            self._write(assertions, _write_styles)
            self._write(legacy, partial(_write_times, name="legacy_assertion_at"))
            self._write(renewals, _replace)
        except BaseException:
            with self._lock:
                for use, (first, last) in waiting.items():
                    self._wait(use, first, last)
                self._renewals = renewals | self._renewals
                self._limited = limited | self._limited
                self._assertions = assertions | self._assertions
                self._legacy = legacy | self._legacy
            raise

    def _begin_minute(self) -> datetime:
        """Return the current minute; forget what was noted in an earlier one."""
        minute = self._clock().replace(second=0, microsecond=0)
        if self._minute != minute:
            self._minute, self._noted = minute, set()
        return minute

    def _write(
        self,
        records: dict[_Key, _Value],
        write: Callable[[Connection, Mapping[_Key, _Value]], None],
        order: Callable[[_Key], Any] | None = None,
    ) -> None:
        """Write records in batches, and remove those that were written from ``records``."""
        # Sorted, so that no two workers deadlock.
        for keys in batches(sorted(records, key=order)):  # type: ignore[type-var, arg-type]
            with self._writing.begin() as connection:
                write(connection, {key: records[key] for key in keys})
            for key in keys:
                del records[key]

    def _wait(self, use: _Use, first: datetime, last: datetime) -> None:
        known_first, known_last = self._waiting.get(use, (first, last))
        self._waiting[use] = min(first, known_first), max(last, known_last)


def _write_uses(connection: Connection, uses: Mapping[_Use, tuple[datetime, datetime]]) -> None:
    # A client may have several uses.
    moments = [{"key": use[0], "moment": last} for use, (_, last) in uses.items()]
    connection.execute(_move_forward(ClientRow), moments)
    with_secret = [(use[1], use[2], first, last) for use, (first, last) in uses.items() if use[1] is not None]
    if with_secret:
        secrets = [{"key": secret_id, "moment": last} for secret_id, _, _, last in with_secret]
        connection.execute(_move_forward(ClientSecretRow), secrets)
        names = ("secret_id", "address", "first", "last")
        told = [{f"told_{name}": value for name, value in zip(names, use, strict=True)} for use in with_secret]
        connection.execute(_record_address(connection.engine), told)
        _forget_addresses(connection, sorted({secret_id for secret_id, *_ in with_secret}))


def _write_times(connection: Connection, times: Mapping[str, datetime], name: str) -> None:
    moments = [{"key": client_id, "moment": moment} for client_id, moment in times.items()]
    connection.execute(_move_forward(ClientRow, name), moments)


def _write_styles(connection: Connection, styles: Mapping[str, AssertionStyle]) -> None:
    aud, typ = bindparam("aud", type_=String), bindparam("typ", type_=String)
    is_other = or_(ClientRow.assertion_aud.is_distinct_from(aud), ClientRow.assertion_typ.is_distinct_from(typ))
    is_client = ClientRow.client_id == bindparam("key")
    changed = update(ClientRow).where(is_client, is_other).values(assertion_aud=aud, assertion_typ=typ)
    connection.execute(changed, [{"key": client_id, **style._asdict()} for client_id, style in styles.items()])


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


def _replace(connection: Connection, renewals: Mapping[str, _Renewal]) -> None:
    for renewal in renewals.values():
        connection.execute(
            update(ClientSecretRow)
            .where(ClientSecretRow.secret_id == renewal.secret_id, renewal.is_old)
            .values(**renewal.values)
        )
