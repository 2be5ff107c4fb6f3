"""Caches the keys that clients (``jwks_uri``, RFC 7591 section 2) and platforms publish, fetched ahead of need.

A key set is fetched when its client or trust is created, and again in the background before it is old. No token
request waits for a fetch or causes one: an assertion with an unknown key only brings the next fetch forward, to at
least :data:`COOL_DOWN` after the last. The last good set is used until another can be fetched. Of all workers on all
machines one fetches a set.
"""

import json
import logging
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session

from app.audit.events import ClientChanged, IssuerChanged
from app.audit.outbox import Outbox
from app.crypto.fitness import find_weakness
from app.crypto.key_set import read_key_set
from app.database.engine import reading_engine, writing_engine
from app.database.models import (
    SERVED,
    SERVED_IDS,
    TRUSTED_ISSUERS,
    ClientKeySetRow,
    ClientRow,
    IssuerKeySetRow,
)
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

DISCOVERY_PATH = "/.well-known/openid-configuration"

_ACCEPT = "application/jwk-set+json, application/json"
_EARLY = 0.8
"""The part of a set's life after which the next is fetched: a failure can be fixed before anybody notices."""
_FETCHER = "the fetch of keys"


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose keys a cache holds.

    :param row: the table.
    :param key: its column that names the owner.
    :param served: condition: the owner's keys are needed.
    :param changed: the event of other keys than before.
    :param discovers: whether a URL may be that of a discovery document.
    """

    row: Any
    key: Any
    served: ColumnElement[bool]
    changed: Callable[[str], ClientChanged | IssuerChanged]
    discovers: bool = False


CLIENTS = Owners(
    ClientKeySetRow,
    ClientKeySetRow.client_id,
    ClientKeySetRow.client_id.in_(SERVED_IDS),
    lambda client_id: ClientChanged(by=_FETCHER, client_id=client_id, change="keys_fetched", fields=("jwks",)),
)
ISSUERS = Owners(
    IssuerKeySetRow,
    IssuerKeySetRow.issuer,
    IssuerKeySetRow.issuer.in_(TRUSTED_ISSUERS),
    lambda issuer: IssuerChanged(by=_FETCHER, issuer=issuer, change="keys_fetched"),
    discovers=True,
)


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
    apply_fetched(kept, found, now)


def apply_fetched(row: ClientKeySetRow | IssuerKeySetRow, found: FetchedJwks, now: datetime) -> None:
    """Write a fetched key set into its row."""
    row.uri, row.jwks, row.fault, row.failures = found.uri, found.jwks, None, 0
    row.skipped = list(found.skipped) or None
    row.fetched_at = row.tried_at = now
    row.refresh_at = now + _EARLY * found.lifetime


class JwksCache:
    """Fetches key sets and keeps them fresh.

    :param outbox: records changes of keys.
    """

    def __init__(
        self, engine: Engine, fetcher: Fetcher, clock: Clock, outbox: Outbox, owners: Owners = CLIENTS
    ) -> None:
        self._engine = engine
        self._owners = owners
        self._fetcher = fetcher
        self._clock = clock
        self._outbox = outbox
        self._lock = threading.Lock()
        self._wanted: set[str] = set()
        self.failing: Sequence[str] = ()
        """Owners whose last fetch failed, as of the last poll."""

    def fetch(self, uri: str) -> FetchedJwks:
        """Fetch the key set at ``uri``, or the one that a discovery document at ``uri`` names.

        :raises ManagementError: the fetch failed, or the set is not valid; why.
        """
        try:
            return self._fetched(uri)
        except FetchError as error:
            raise ManagementError(f"the keys at {without_query(uri)} cannot be fetched: {error}") from None

    def request_refresh(self, owner: str) -> None:
        """Record in memory that a key was used that the owner's set does not have."""
        with self._lock:
            if len(self._wanted) < MOST_WANTED:
                self._wanted.add(owner)

    def poll(self) -> None:
        """Fetch the sets that are due, unless another worker does.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        now = self._clock()
        self._move_nearer(sorted(wanted), now)
        claimed = [(owner, uri) for owner, uri in self._due(now) if self._claim(owner, uri, now)]
        if claimed:
            with ThreadPoolExecutor(len(claimed), "fetch") as pool:
                list(pool.map(lambda one: self._refresh(*one), claimed))
        self.failing = self.find_failing()

    def _fetched(self, uri: str) -> FetchedJwks:
        is_discovery = self._owners.discovers and uri.endswith(DISCOVERY_PATH)
        fetched = self._fetcher.fetch(self._discovered(uri) if is_discovery else uri, _ACCEPT)
        try:
            jwks, skipped = read_key_set(fetched.body)
        except ManagementError as error:
            raise FetchError(str(error)) from None
        said = USUAL if fetched.max_age is None else timedelta(seconds=fetched.max_age)
        return FetchedJwks(uri, jwks, skipped, min(max(said, SHORTEST), LONGEST))

    def _discovered(self, uri: str) -> str:
        """Return the ``jwks_uri`` of a discovery document."""
        try:
            document = json.loads(self._fetcher.fetch(uri, "application/json").body)
            jwks_uri = check_jwks_uri(document["jwks_uri"])
            issuer = document["issuer"]
        except (ValueError, RecursionError, KeyError, TypeError, ManagementError):
            raise FetchError("the discovery document names no issuer, or no jwks_uri that is allowed") from None
        if issuer != uri.removesuffix(DISCOVERY_PATH):
            raise FetchError("the discovery document is of another issuer")
        return jwks_uri

    def _due(self, now: datetime) -> Sequence[Any]:
        row = self._owners.row
        due = (
            select(self._owners.key, row.uri)
            .where(row.refresh_at <= now, self._owners.served)
            .order_by(row.refresh_at)
            .limit(FETCHED_AT_ONCE)
        )
        with reading_engine(self._engine).connect() as connection:
            return connection.execute(due).all()

    def find_failing(self) -> Sequence[str]:
        """Return owners whose last fetch failed, at most :data:`MOST_FAILING`.

        :raises SQLAlchemyError: the database does not answer.
        """
        key = self._owners.key
        failing = select(key).where(self._owners.row.fault.is_not(None), self._owners.served)
        failing = failing.order_by(key).limit(MOST_FAILING)
        with reading_engine(self._engine).connect() as connection:
            return connection.scalars(failing).all()

    def find_skipped(self) -> Sequence[tuple[str, str]]:
        """Return published keys that cannot be used: owner and reason, at most :data:`MOST_FAILING`.

        :raises SQLAlchemyError: the database does not answer.
        """
        key, skipped = self._owners.key, self._owners.row.skipped
        skipping = select(key, skipped).where(skipped.is_not(None), self._owners.served)
        with reading_engine(self._engine).connect() as connection:
            rows = connection.execute(skipping.order_by(key).limit(MOST_FAILING)).all()
        return [(owner, reason) for owner, reasons in rows for reason in reasons or ()][:MOST_FAILING]

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

    def _claim(self, owner: str, uri: str, now: datetime) -> bool:
        """Return whether this worker may fetch. If it dies meanwhile, another tries after the cool-down."""
        claim = (
            update(self._owners.row)
            .where(self._is(owner, uri), self._owners.row.refresh_at <= now)
            .values(tried_at=now, refresh_at=now + COOL_DOWN)
        )
        with writing_engine(self._engine).begin() as connection:
            return connection.execute(claim).rowcount == 1

    def _move_nearer(self, owners: Sequence[str], now: datetime) -> None:
        wanted = select(self._owners.row).where(self._owners.key.in_(owners))
        if not owners:
            return
        with reading_engine(self._engine).connect() as connection:
            found = connection.execute(wanted.with_only_columns(self._owners.key, self._owners.row.tried_at))
            nearer = [(owner, max(now, tried_at + COOL_DOWN)) for owner, tried_at in found]
        with writing_engine(self._engine).begin() as connection:
            for owner, moment in nearer:
                later = (self._owners.key == owner) & (self._owners.row.refresh_at > moment)
                connection.execute(update(self._owners.row).where(later).values(refresh_at=moment))

    def _refresh(self, owner: str, uri: str) -> None:
        try:
            found = self._fetched(uri)
        except FetchError as error:
            self._record_failure(owner, uri, str(error))
        except Exception as error:
            log.exception("fetching the keys of %r failed", owner)
            self._record_failure(owner, uri, type(error).__name__)
        else:
            self._record_success(owner, found)

    def _record_success(self, owner: str, found: FetchedJwks) -> None:
        now = self._clock()
        # Spread the fetches of sets that were created together.
        rest = found.lifetime * (_EARLY - random.uniform(0, 0.1))  # noqa: S311 - No secret.
        skipped = list(found.skipped) or None
        values = {"jwks": found.jwks, "skipped": skipped, "fetched_at": now, "refresh_at": now + rest, "fault": None}
        row = self._owners.row
        before = select(row.jwks, row.fault, row.skipped).where(self._is(owner, found.uri))
        with writing_engine(self._engine).begin() as connection:
            kept = connection.execute(before.with_for_update()).first()
            if kept is None:
                # The client was changed or deleted meanwhile.
                return
            connection.execute(update(row).where(self._is(owner, found.uri)).values(**values, failures=0))
            if kept.jwks != found.jwks:
                self._outbox.put(connection, self._owners.changed(owner))
        if kept.fault:
            log.warning("the keys of %r can be fetched again from %s", owner, without_query(found.uri))
        if skipped and kept.skipped != skipped:
            log.warning("not all keys of %r at %s can be used: %s", owner, without_query(found.uri), "; ".join(skipped))

    def _record_failure(self, owner: str, uri: str, fault: str) -> None:
        before = select(self._owners.row.failures, self._owners.row.fault).where(self._is(owner, uri))
        with writing_engine(self._engine).begin() as connection:
            kept = connection.execute(before.with_for_update()).first()
            if kept is None:
                return
            wait = min(COOL_DOWN * 2 ** min(kept.failures, 10), LONGEST_WAIT)
            values = {"fault": fault, "failures": kept.failures + 1, "refresh_at": self._clock() + wait}
            connection.execute(update(self._owners.row).where(self._is(owner, uri)).values(**values))
        if kept.fault != fault:
            log.error(
                "the keys of %r cannot be fetched from %s; the last good ones stay in use: %s",
                owner,
                without_query(uri),
                fault,
            )

    def _is(self, owner: str, uri: str) -> Any:
        return (self._owners.key == owner) & (self._owners.row.uri == uri)
