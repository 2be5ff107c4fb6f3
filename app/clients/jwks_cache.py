"""Clients' keys that are published elsewhere (``jwks_uri``, RFC 7591 section 2): fetched ahead of need.

A set is fetched when its client is made, and again in the background before it is old. No token request waits for a
fetch or causes one: an assertion by a key that is not known only moves the next fetch nearer, and not nearer than
:data:`COOL_DOWN` to the one before. The last good set is kept for as long as no other can be had. Of all workers on
all machines one fetches a set.
"""

import json
import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session

from app.audit.events import ClientChanged
from app.audit.outbox import Outbox
from app.crypto.jwk import check_fetched_jwks
from app.database.engine import reading_engine, writing_engine
from app.database.models import SERVED_IDS, ClientKeySetRow, ClientRow
from app.errors import ManagementError
from app.http.safe_fetch import Fetcher, FetchError, check_url, without_query
from app.types import Clock

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
COOL_DOWN = timedelta(seconds=60)
SHORTEST, USUAL, LONGEST = timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)
"""How long a set is kept before it is fetched again, whatever it says itself; and where it says nothing."""
LONGEST_WAIT = timedelta(minutes=15)
"""Between two attempts that fail; the first come soon."""
FETCHED_AT_ONCE = 8
"""By one worker: a host that is slow holds up no other client's."""
MOST_WANTED = 1000
MOST_FAILING = 20
"""Clients whose keys cannot be fetched, by name."""

_ACCEPT = "application/jwk-set+json, application/json"
_EARLY = 0.8
"""Of a set's life, when the next is fetched: a failure may be mended before anybody notices."""
_FETCHER = "the fetch of keys"


@dataclass(frozen=True, slots=True)
class FetchedJwks:
    """A set as it was fetched and checked.

    :param lifetime: how long it is kept.
    """

    uri: str
    jwks: dict[str, Any]
    lifetime: timedelta


def check_jwks_uri(uri: object) -> str:
    """Check where a client publishes its keys.

    :raises ManagementError: it is no URL to fetch from; what is allowed.
    """
    try:
        if not isinstance(uri, str):
            raise ValueError("must be text")  # noqa: TRY301, TRY004 - As the others.
        check_url(uri)
    except ValueError as error:
        raise ManagementError(f"jwks_uri {error}") from None
    return uri


def store_jwks(session: scoped_session[Any], row: ClientRow, found: FetchedJwks | None, now: datetime) -> None:
    """Keep the set of a client that is made or changed, within a transaction of the caller's.

    :param found: what was fetched for it, if it was given a URL.
    :raises ManagementError: its URL is another one than what was fetched.
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
    kept.fetched_at = kept.tried_at = now
    kept.refresh_at = now + _EARLY * found.lifetime


class JwksCache:
    """Fetches, and keeps what was fetched fresh.

    :param outbox: where a change of keys leaves a trace.
    """

    def __init__(self, engine: Engine, fetcher: Fetcher, clock: Clock, outbox: Outbox) -> None:
        self._engine = engine
        self._fetcher = fetcher
        self._clock = clock
        self._outbox = outbox
        self._lock = threading.Lock()
        self._wanted: set[str] = set()
        self.failing: Sequence[str] = ()
        """Ids of clients whose keys could not be fetched the last time, as of the last look."""

    def fetch(self, uri: str) -> FetchedJwks:
        """The set at ``uri``.

        :raises ManagementError: there is none to be had, or one that is wrong; why.
        """
        try:
            return self._fetched(uri)
        except FetchError as error:
            raise ManagementError(f"the keys at {without_query(uri)} cannot be fetched: {error}") from None

    def request_refresh(self, client_id: str) -> None:
        """Note that a client has used a key that its set does not have, in memory."""
        with self._lock:
            if len(self._wanted) < MOST_WANTED:
                self._wanted.add(client_id)

    def poll(self) -> None:
        """Fetch what is due, unless another worker does.

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
            document = json.loads(fetched.body)
        except (ValueError, RecursionError):
            raise FetchError("the answer is no JSON") from None
        try:
            jwks = check_fetched_jwks(document)
        except ManagementError as error:
            raise FetchError(str(error)) from None
        said = USUAL if fetched.max_age is None else timedelta(seconds=fetched.max_age)
        return FetchedJwks(uri, jwks, min(max(said, SHORTEST), LONGEST))

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
        """Ids of clients whose keys could not be fetched the last time, at most :data:`MOST_FAILING`.

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

    def _claim(self, client_id: str, uri: str, now: datetime) -> bool:
        """Whether this worker is to fetch; if it dies over it, another tries after the cool-down."""
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
            log.exception("the fetch of the keys of %r failed", client_id)
            self._record_failure(client_id, uri, type(error).__name__)
        else:
            self._record_success(client_id, found)

    def _record_success(self, client_id: str, found: FetchedJwks) -> None:
        now = self._clock()
        # Not all in the same moment, though they were made so.
        rest = found.lifetime * (_EARLY - random.uniform(0, 0.1))  # noqa: S311 - No secret.
        values = {"jwks": found.jwks, "fetched_at": now, "refresh_at": now + rest, "fault": None, "failures": 0}
        before = select(ClientKeySetRow.jwks, ClientKeySetRow.fault).where(_is(client_id, found.uri))
        with writing_engine(self._engine).begin() as connection:
            kept = connection.execute(before.with_for_update()).first()
            if kept is None:
                # Its client was changed or deleted meanwhile.
                return
            connection.execute(update(ClientKeySetRow).where(_is(client_id, found.uri)).values(**values))
            if kept.jwks != found.jwks:
                changed = ClientChanged(by=_FETCHER, client_id=client_id, change="keys_fetched", fields=("jwks",))
                self._outbox.put(connection, changed)
        if kept.fault:
            log.warning("the keys of %r can be fetched again from %s", client_id, without_query(found.uri))

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
                "the keys of %r cannot be fetched from %s, and are those of the last time: %s",
                client_id,
                without_query(uri),
                fault,
            )


def _is(client_id: str, uri: str) -> Any:
    return (ClientKeySetRow.client_id == client_id) & (ClientKeySetRow.uri == uri)
