"""The revocation feed: the revoked tokens of a caller's resources, for verifiers that work offline.

The format is our own; ``docs/revocation-feed.md`` describes it. A document is built when something was revoked since
the last one, and from time to time, since it expires. In between it is cached.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocations import UNIX_EPOCH, Revocations
from app.types import ALL_RESOURCES, DEFAULT_AUDIENCE, Clock

TYP = "revocations+jwt"
MEDIA_TYPE = f"application/{TYP}"

MADE_ANEW_SECONDS = 300
"""A document is never older than this when it is sent: its ``iat`` is rounded down to a multiple."""

LIFE_SECONDS = 3600
"""How long after its ``iat`` a document is valid.

A consumer that cannot refresh by then must treat revocation status as unknown.
"""

MAX_AGE_SECONDS = 60

MOST_TOKENS_OF_CLIENT = 1000
"""If a client has more revoked tokens, the feed names the client and not its tokens."""

SINCE_MARGIN_SECONDS = 600
"""How much earlier than asked for a document of changes begins: clocks differ, and a revocation is stored a little
later than its time.
"""

KEPT_BYTES = 16 * 1024 * 1024
"""The cached documents of a worker."""


_Key = tuple[str, tuple[str, ...], int | None]
"""A reader, its resources, and since when it wants the changes."""


def _begin_of(since: int | None) -> datetime:
    return UNIX_EPOCH if since is None else datetime.fromtimestamp(since - SINCE_MARGIN_SECONDS, UTC)


@dataclass(frozen=True, slots=True)
class FeedDocument:
    """A signed document with its ``ETag``."""

    content: bytes
    etag: str


class RevocationFeed:
    """Builds documents and caches the latest.

    :param default_audience: the audience of clients without audiences.
    """

    def __init__(
        self, issuer: str, default_audience: str, revocations: Revocations, tokens: AccessTokenIssuer, clock: Clock
    ) -> None:
        self._issuer = issuer
        self._default_audience = default_audience
        self._revocations = revocations
        self._tokens = tokens
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, tuple[Any, FeedDocument]] = OrderedDict()

    def document_for(self, client_id: str, resources: tuple[str, ...], since: int | None = None) -> FeedDocument:
        """Return the document for a client that introspects ``resources``.

        :param since: the ``iat`` of the document that the client has, if it wants only what has changed. If that has
            expired, the document is whole.
        :raises ServiceUnavailable: the database did not answer, or no key may sign.
        """
        now = int(self._clock().timestamp())
        iat = now // MADE_ANEW_SECONDS * MADE_ANEW_SECONDS
        if since is not None:
            # So that few documents of changes are made.
            since = since // MADE_ANEW_SECONDS * MADE_ANEW_SECONDS if now - LIFE_SECONDS < since <= now else None
        key = client_id, resources, since
        # Read before the content: a revocation in between is then sent twice rather than never.
        version = (self._revocations.version(), iat)
        known = self._kept.get(key)
        if known and known[0] == version:
            return known[1]
        made = self._make(key, iat)
        self._keep(key, version, made)
        return made

    def _make(self, key: "_Key", iat: int) -> FeedDocument:
        client_id, resources, since = key
        wanted, begin = frozenset(resources), _begin_of(since)
        introspect_clients = self._revocations.clients_with_more_than(MOST_TOKENS_OF_CLIENT)
        claims = {
            "iss": self._issuer,
            "aud": client_id,
            "iat": iat,
            "exp": iat + LIFE_SECONDS,
            **({} if since is None else {"since": since}),
            "revoked_tokens": {
                jti: exp
                for jti, exp, audiences in self._revocations.live(begin, without_clients=introspect_clients)
                if self._concerns(audiences, wanted)
            },
            "clients_revoked_until": {
                client: int(until.timestamp())
                for client, until, audiences in self._revocations.clients()
                if self._concerns(audiences, wanted)
            },
            "introspect_clients": sorted(
                client for client, audiences in introspect_clients.items() if self._concerns(audiences, wanted)
            ),
        }
        content = self._tokens.sign(claims, TYP).encode()
        return FeedDocument(content, hashlib.sha256(content).hexdigest()[:32])

    def _concerns(self, audiences: frozenset[str], wanted: frozenset[str]) -> bool:
        return (
            ALL_RESOURCES in wanted
            or not wanted.isdisjoint(audiences)
            or (DEFAULT_AUDIENCE in audiences and self._default_audience in wanted)
        )

    def _keep(self, key: "_Key", version: Any, made: FeedDocument) -> None:
        with self._lock:
            self._kept[key] = version, made
            self._kept.move_to_end(key)
            size = sum(len(document.content) for _, document in self._kept.values())
            while size > KEPT_BYTES:
                _, (_, oldest) = self._kept.popitem(last=False)
                size -= len(oldest.content)
