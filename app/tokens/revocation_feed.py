"""The revocation feed: the revoked tokens of a caller's resources, for verifiers that work offline.

The format is our own; ``docs/revocation-feed.md`` describes it. A document is built when something was revoked since
the last one, and from time to time, since it expires. In between it is cached.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocations import Revocations
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

_KEPT_BYTES = 16 * 1024 * 1024
"""The cached documents of a worker."""


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
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], tuple[Any, FeedDocument]] = OrderedDict()

    def document_for(self, client_id: str, resources: tuple[str, ...]) -> FeedDocument:
        """Return the document for a client that introspects ``resources``.

        :raises ServiceUnavailable: the database did not answer, or no key may sign.
        """
        iat = int(self._clock().timestamp()) // MADE_ANEW_SECONDS * MADE_ANEW_SECONDS
        # Read before the content: a revocation in between is then sent twice rather than never.
        version = (self._revocations.version(), iat)
        known = self._kept.get((client_id, resources))
        if known and known[0] == version:
            return known[1]
        made = self._make(client_id, resources, iat)
        self._keep((client_id, resources), version, made)
        return made

    def _make(self, client_id: str, resources: tuple[str, ...], iat: int) -> FeedDocument:
        wanted = frozenset(resources)
        claims = {
            "iss": self._issuer,
            "aud": client_id,
            "iat": iat,
            "exp": iat + LIFE_SECONDS,
            "revoked_tokens": {
                jti: exp for jti, exp, audiences in self._revocations.live() if self._concerns(audiences, wanted)
            },
            "clients_revoked_until": {
                client: int(until.timestamp())
                for client, until, audiences in self._revocations.clients()
                if self._concerns(audiences, wanted)
            },
        }
        content = self._tokens.sign(claims, TYP).encode()
        return FeedDocument(content, hashlib.sha256(content).hexdigest()[:32])

    def _concerns(self, audiences: frozenset[str], wanted: frozenset[str]) -> bool:
        return (
            ALL_RESOURCES in wanted
            or not wanted.isdisjoint(audiences)
            or (DEFAULT_AUDIENCE in audiences and self._default_audience in wanted)
        )

    def _keep(self, key: tuple[str, tuple[str, ...]], version: Any, made: FeedDocument) -> None:
        with self._lock:
            self._kept[key] = version, made
            self._kept.move_to_end(key)
            size = sum(len(document.content) for _, document in self._kept.values())
            while size > _KEPT_BYTES:
                _, (_, oldest) = self._kept.popitem(last=False)
                size -= len(oldest.content)
