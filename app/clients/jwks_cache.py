"""Caches the keys that clients publish (``jwks_uri``, RFC 7591 section 2), fetched ahead of need.

A key set is fetched when its client is created, and again in the background before it is old. No token request waits
for a fetch or causes one: an assertion with an unknown key only brings the next fetch forward, to at least
:data:`COOL_DOWN` after the last. The last good set is used until another can be fetched. Of all workers on all
machines one fetches a set.
"""

import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session

from app.audit.events import ClientChanged
from app.audit.outbox import Outbox
from app.crypto.fitness import find_weakness
from app.crypto.key_set import read_key_set
from app.database.engine import reading_engine, writing_engine
from app.database.models import SERVED, SERVED_IDS, ClientKeySetRow, ClientRow
from app.errors import ManagementError
from app.http.safe_fetch import Fetcher, FetchError, check_url, without_query
from app.types import Clock

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
COOL_DOWN = timedelta(seconds=60)
SHORTEST, USUAL, LONGEST = timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)
"""How long a set is cached at least and at most, whatever its response says; ``USUAL`` if it says nothing."""
LONGEST_WAIT = timedelta(minutes=15)
"""Between two failed attempts; the first attempts are closer together."""
FETCHED_AT_ONCE = 8
"""Per worker: a slow host must not delay other clients' keys."""
MOST_WANTED = 1000
MOST_FAILING = 20
"""How many clients whose keys cannot be fetched are named."""

_ACCEPT = "application/jwk-set+json, application/json"
_EARLY = 0.8
"""The part of a set's life after which the next is fetched: a failure can be fixed before anybody notices."""
_FETCHER = "the fetch of keys"


@dataclass(frozen=True, slots=True)
class FetchedJwks:
    """A key set, fetched and checked.

    :param skipped: keys that cannot be used here, each with the reason.
    :param lifetime: how long it is cached.
    """

    uri: str
    jwks: dict[str, Any]
    skipped: Sequence[str]
    lifetime: timedelta


def check_jwks_uri(uri: object) -> str:
    """Check the URL at which a client publishes its keys.

    :raises ManagementError: the URL is not allowed; what is.
    """
    try:
        if not isinstance(uri, str):
            raise ValueError("must be text")  # noqa: TRY301, TRY004 - As the others.
        check_url(uri)
    except ValueError as error:
        raise ManagementError(f"jwks_uri {error}") from None
    return uri


def store_jwks(session: scoped_session[Any], row: ClientRow, found: FetchedJwks | None, now: datetime) -> None:
    """Store the key set of a new or changed client, within the caller's transaction.

    :param found: what was fetched for the client, if it was given a URL.
    :raises ManagementError: the client's URL is not the one that was fetched.
    """
    uri = (row.auth_fields or {}).get("jwks_uri")
    kept = session.get(ClientKeySetRow, row.client_id)
    if uri is None:
        if kept is not None:
            session.delete(kept)
        return
    if found is None and kept is not None and kept.uri == uri:
        return
    if found is None or found.uri != uri:
        raise ManagementError("the keys of a client with jwks_uri must be fetched before it is made or changed")
    if kept is None:
        kept = ClientKeySetRow(client_id=row.client_id)
        session.add(kept)
    kept.uri, kept.jwks, kept.fault, kept.failures = uri, found.jwks, None, 0
    kept.skipped = list(found.skipped) or None
    kept.fetched_at = kept.tried_at = now
    kept.refresh_at = now + _EARLY * found.lifetime


class JwksCache:
    """Fetches key sets and keeps them fresh.

    :param outbox: records changes of keys.
    """

    def __init__(self, engine: Engine, fetcher: Fetcher, clock: Clock, outbox: Outbox) -> None:
        self._engine = engine
        self._fetcher = fetcher
        self._clock = clock
        self._outbox = outbox
        self._lock = threading.Lock()
        self._wanted: set[str] = set()
        self.failing: Sequence[str] = ()
        """Ids of clients whose last fetch failed, as of the last poll."""

    def fetch(self, uri: str) -> FetchedJwks:
        """Fetch the key set at ``uri``.

        :raises ManagementError: the fetch failed, or the set is not valid; why.
        """
        try:
            return self._fetched(uri)
        except FetchError as error:
            raise ManagementError(f"the keys at {without_query(uri)} cannot be fetched: {error}") from None

    def request_refresh(self, client_id: str) -> None:
        """Record in memory that a client used a key that its set does not have."""
        with self._lock:
            if len(self._wanted) < MOST_WANTED:
                self._wanted.add(client_id)

    def poll(self) -> None:
        """Fetch the sets that are due, unless another worker does.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        now = self._clock()
        self._move_nearer(sorted(wanted), now)
        claimed = [(client_id, uri) for client_id, uri in self._due(now) if self._claim(client_id, uri, now)]
        if claimed:
            with ThreadPoolExecutor(len(claimed), "fetch") as pool:
                list(pool.map(lambda one: self._refresh(*one), claimed))
        self.failing = self.find_failing()

    def _fetched(self, uri: str) -> FetchedJwks:
        fetched = self._fetcher.fetch(uri, _ACCEPT)
        try:
            jwks, skipped = read_key_set(fetched.body)
        except ManagementError as error:
            raise FetchError(str(error)) from None
        said = USUAL if fetched.max_age is None else timedelta(seconds=fetched.max_age)
        return FetchedJwks(uri, jwks, skipped, min(max(said, SHORTEST), LONGEST))

    def _due(self, now: datetime) -> Sequence[Any]:
        due = (
            select(ClientKeySetRow.client_id, ClientKeySetRow.uri)
            .where(ClientKeySetRow.refresh_at <= now, ClientKeySetRow.client_id.in_(SERVED_IDS))
            .order_by(ClientKeySetRow.refresh_at)
            .limit(FETCHED_AT_ONCE)
        )
        with reading_engine(self._engine).connect() as connection:
            return connection.execute(due).all()

    def find_failing(self) -> Sequence[str]:
        """Return ids of clients whose last fetch failed, at most :data:`MOST_FAILING`.

        :raises SQLAlchemyError: the database does not answer.
        """
        failing = (
            select(ClientKeySetRow.client_id)
            .where(ClientKeySetRow.fault.is_not(None), ClientKeySetRow.client_id.in_(SERVED_IDS))
            .order_by(ClientKeySetRow.client_id)
            .limit(MOST_FAILING)
        )
        with reading_engine(self._engine).connect() as connection:
            return connection.scalars(failing).all()

    def find_skipped(self) -> Sequence[tuple[str, str]]:
        """Return published keys that cannot be used: client id and reason, at most :data:`MOST_FAILING`.

        :raises SQLAlchemyError: the database does not answer.
        """
        skipping = (
            select(ClientKeySetRow.client_id, ClientKeySetRow.skipped)
            .where(ClientKeySetRow.skipped.is_not(None), ClientKeySetRow.client_id.in_(SERVED_IDS))
            .order_by(ClientKeySetRow.client_id)
            .limit(MOST_FAILING)
        )
        with reading_engine(self._engine).connect() as connection:
            rows = connection.execute(skipping).all()
        return [(row.client_id, reason) for row in rows for reason in row.skipped or ()][:MOST_FAILING]

    def find_unfit(self) -> list[tuple[str, str, str]]:
        """Return keys that would not be accepted today: client id, kid and weakness, at most :data:`MOST_FAILING`.

        :raises SQLAlchemyError: the database does not answer.
        """
        stored = (
            select(ClientRow.client_id, ClientRow.auth_fields, ClientKeySetRow.jwks)
            .outerjoin(ClientKeySetRow, ClientKeySetRow.client_id == ClientRow.client_id)
            .where(SERVED, ClientRow.auth_fields.is_not(None))
            .order_by(ClientRow.client_id)
        )
        # In a transaction, so that PostgreSQL sends rows as they are read.
        with self._engine.connect() as connection:
            rows = connection.execute(stored, execution_options={"yield_per": 1000})
            keys = (
                (row.client_id, key)
                for row in rows
                for key in (row.jwks or (row.auth_fields or {}).get("jwks") or {}).get("keys", ())
            )
            found = ((client_id, key["kid"], find_weakness(key)) for client_id, key in keys)
            unfit = ((client_id, kid, weakness) for client_id, kid, weakness in found if weakness)
            return list(islice(unfit, MOST_FAILING))

    def _claim(self, client_id: str, uri: str, now: datetime) -> bool:
        """Return whether this worker may fetch. If it dies meanwhile, another tries after the cool-down."""
        claim = (
            update(ClientKeySetRow)
            .where(_is(client_id, uri), ClientKeySetRow.refresh_at <= now)
            .values(tried_at=now, refresh_at=now + COOL_DOWN)
        )
        with writing_engine(self._engine).begin() as connection:
            return connection.execute(claim).rowcount == 1

    def _move_nearer(self, client_ids: Sequence[str], now: datetime) -> None:
        wanted = select(ClientKeySetRow).where(ClientKeySetRow.client_id.in_(client_ids))
        if not client_ids:
            return
        with reading_engine(self._engine).connect() as connection:
            found = connection.execute(wanted.with_only_columns(ClientKeySetRow.client_id, ClientKeySetRow.tried_at))
            nearer = [(row.client_id, max(now, row.tried_at + COOL_DOWN)) for row in found]
        with writing_engine(self._engine).begin() as connection:
            for client_id, moment in nearer:
                later = (ClientKeySetRow.client_id == client_id) & (ClientKeySetRow.refresh_at > moment)
                connection.execute(update(ClientKeySetRow).where(later).values(refresh_at=moment))

    def _refresh(self, client_id: str, uri: str) -> None:
        try:
            found = self._fetched(uri)
        except FetchError as error:
            self._record_failure(client_id, uri, str(error))
        except Exception as error:
            log.exception("fetching the keys of %r failed", client_id)
            self._record_failure(client_id, uri, type(error).__name__)
        else:
            self._record_success(client_id, found)

    def _record_success(self, client_id: str, found: FetchedJwks) -> None:
        now = self._clock()
        # Spread the fetches of sets that were created together.
        rest = found.lifetime * (_EARLY - random.uniform(0, 0.1))  # noqa: S311 - No secret.
        skipped = list(found.skipped) or None
        values = {"jwks": found.jwks, "skipped": skipped, "fetched_at": now, "refresh_at": now + rest, "fault": None}
        row = ClientKeySetRow
        before = select(row.jwks, row.fault, row.skipped).where(_is(client_id, found.uri))
        with writing_engine(self._engine).begin() as connection:
            kept = connection.execute(before.with_for_update()).first()
            if kept is None:
                # The client was changed or deleted meanwhile.
                return
            connection.execute(update(row).where(_is(client_id, found.uri)).values(**values, failures=0))
            if kept.jwks != found.jwks:
                changed = ClientChanged(by=_FETCHER, client_id=client_id, change="keys_fetched", fields=("jwks",))
                self._outbox.put(connection, changed)
        if kept.fault:
            log.warning("the keys of %r can be fetched again from %s", client_id, without_query(found.uri))
        if skipped and kept.skipped != skipped:
            log.warning(
                "not all keys of %r at %s can be used: %s", client_id, without_query(found.uri), "; ".join(skipped)
            )

    def _record_failure(self, client_id: str, uri: str, fault: str) -> None:
        before = select(ClientKeySetRow.failures, ClientKeySetRow.fault).where(_is(client_id, uri))
        with writing_engine(self._engine).begin() as connection:
            kept = connection.execute(before.with_for_update()).first()
            if kept is None:
                return
            wait = min(COOL_DOWN * 2 ** min(kept.failures, 10), LONGEST_WAIT)
            values = {"fault": fault, "failures": kept.failures + 1, "refresh_at": self._clock() + wait}
            connection.execute(update(ClientKeySetRow).where(_is(client_id, uri)).values(**values))
        if kept.fault != fault:
            log.error(
                "the keys of %r cannot be fetched from %s; the last good ones stay in use: %s",
                client_id,
                without_query(uri),
                fault,
            )


def _is(client_id: str, uri: str) -> Any:
    return (ClientKeySetRow.client_id == client_id) & (ClientKeySetRow.uri == uri)
