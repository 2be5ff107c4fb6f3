"""``/oauth/revocations``: the revocation feed, for verifiers that work offline and poll once a minute.

``GET`` for clients that authenticate in a header, ``POST`` for those that authenticate in the body.
``docs/revocation-feed.md`` describes the format.
"""

import re
from http import HTTPStatus
from typing import Any

from authlib.oauth2.rfc6749 import TokenEndpoint

from app.config.settings import Settings
from app.errors import InvalidRequest, UnauthorizedClient
from app.http.application import Request
from app.oauth.authorization_server import NO_STORE, Document
from app.oauth.services import Endpoint, OAuthServices
from app.reasons import RefusalReason
from app.tokens.revocation_feed import MAX_AGE_SECONDS, MEDIA_TYPE
from app.types import Client, Metadata

PATH = "/oauth/revocations"

_TIME = re.compile(r"[0-9]{1,12}")


class RevocationFeedEndpoint(TokenEndpoint):
    """An endpoint for the feed, on Authlib's base class."""

    ENDPOINT_NAME = "revocation_feed"
    PARAMETERS = frozenset[str]()

    def __init__(self, services: OAuthServices) -> None:
        super().__init__(services.server)
        self._feed = services.tokens.revocation_feed

    def create_endpoint_response(self, request: Any) -> Any:
        """Respond to ``request``: status, body, headers.

        :raises InvalidClient: the caller did not authenticate.
        :raises InvalidRequest: ``since`` is no time.
        :raises UnauthorizedClient: the client may not introspect.
        :raises ServiceUnavailable: the revocations cannot be read now.
        """
        caller: Client = self.server.authenticate_client(request, self.CLIENT_AUTH_METHODS, self.ENDPOINT_NAME)
        if not caller.introspects:
            raise UnauthorizedClient(
                RefusalReason.NOT_MADE_TO_INTROSPECT,
                "The client was not made to introspect tokens.",
                client_id=caller.client_id,
            )
        document = self._feed.document_for(caller.client_id, caller.introspects, _since(request.http_request))
        if request.method == "POST":
            return HTTPStatus.OK, Document(document.content, MEDIA_TYPE), list(NO_STORE)
        headers = [
            ("ETag", f'"{document.etag}"'),
            ("Cache-Control", f"private, max-age={MAX_AGE_SECONDS}"),
            ("Vary", "Authorization"),
        ]
        if _has(request.http_request, document.etag):
            return HTTPStatus.NOT_MODIFIED, Document(b"", MEDIA_TYPE), headers
        return HTTPStatus.OK, Document(document.content, MEDIA_TYPE), headers


def _since(http_request: Request) -> int | None:
    """Return the time in the query of a ``GET``."""
    given = http_request.args.getlist("since") if http_request.method == "GET" else []
    if not given:
        return None
    if len(given) > 1 or not _TIME.fullmatch(given[0]):
        raise InvalidRequest(RefusalReason.MALFORMED_SINCE, "The parameter since must be the iat of a document, once.")
    return int(given[0])


def _has(http_request: Request, etag: str) -> bool:
    """Return whether the caller has this document already: RFC 9110 section 13.1.2."""
    return http_request.if_none_match.contains_weak(etag)


def _metadata(settings: Settings) -> Metadata:
    return {"tokenhouse_revocation_feed": f"{settings.issuer}{PATH}"}


REVOCATION_FEED = Endpoint.of(
    RevocationFeedEndpoint, PATH, _metadata, methods=("GET", "POST"), is_protected_resource=True
)
