"""A strict OAuth2Request: one complete form, each parameter once; and what an event says of a request."""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from authlib.oauth2.rfc6749 import OAuth2Request
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload

from app.audit.events import RequestFacts
from app.crypto.jws import parse_unverified
from app.errors import InvalidRequest
from app.http.application import Request
from app.http.forms import AUDIENCE, REPEATABLE, RESOURCE, read_authorization, read_form
from app.reasons import RefusalReason
from app.types import Authentication, UnverifiedJws

ASSERTION_MAX_CHARACTERS = 8 * 1024
"""No assertion is nearly as long."""


class StrictRequest(OAuth2Request):
    """A parsed request: the :class:`app.types.TokenRequest` that grants and methods get.

    ``authentication`` is filled in on the way, for the events.

    :param uri: the URL, with the origin of the settings: what a proxy or a ``Host`` header says must not matter.
    """

    # Authlib's constructor checks for each request whether the URL is https. The settings were checked at the start.
    client: Any = None
    authentication: Authentication | None = None
    auth_method: str | None = None
    allows_memory = False
    _body = None

    def __init__(
        self, http_request: Request, uri: str, authorization: str | None, pairs: Sequence[tuple[str, str]]
    ) -> None:
        self.http_request, self.method, self.uri = http_request, http_request.method, uri
        self.source_address: str | None = http_request.source_address
        self.sent_client_id: str = ""
        self.presented_secrets: list[str] = []
        self.assertion_facts: dict[str, str] = {}
        self.environ: dict[str, Any] = http_request.environ
        self.response_headers: list[tuple[str, str]] = []
        self.authorization = authorization
        self.resources: Sequence[str] = [value for name, value in pairs if name == RESOURCE]
        self.audiences: Sequence[str] = [one for name, value in pairs if name == AUDIENCE for one in value.split()]
        self.parameters = {name: value for name, value in pairs if name not in REPEATABLE}
        self.payload = BasicOAuth2Payload(self.parameters)

    @cached_property
    def unverified_assertion(self) -> UnverifiedJws | None:
        """The client assertion, parsed once for all methods; ``None`` if there is none, or it is no JWS."""
        unverified = self.parameters.get("client_assertion")
        return parse_unverified(unverified, ASSERTION_MAX_CHARACTERS) if unverified else None

    @property
    def form(self) -> dict[str, str]:
        """The parameters, under the name that Authlib's endpoints use."""
        return self.parameters


def parse_request(request: Request, uri: str, known: set[str]) -> StrictRequest:
    """Parse ``request`` strictly.

    :param uri: the URL of the request.
    :param known: the parameters that the endpoint reads.
    :raises InvalidRequest: it is not one complete form with each parameter once.
    """
    environ = request.environ
    if environ.get("QUERY_STRING"):
        _refuse_query_parameters(request, known)
    pairs = [] if request.method in {"GET", "HEAD"} else read_form(environ, known)
    return StrictRequest(request, uri, read_authorization(environ), pairs)


def _refuse_query_parameters(request: Request, known: set[str]) -> None:
    """Refuse known parameters in the query string, where proxies log them; ignore others (section 2.3.1)."""
    if name := next((name for name in sorted(known) if name in request.args), None):
        raise InvalidRequest(
            RefusalReason.QUERY_PARAMETER, f"The parameter {name} must be in the body, not in the URL."
        )


def request_facts(http_request: Request) -> RequestFacts:
    """Return the facts of a request for its event."""
    return RequestFacts(
        request_id=http_request.request_id,
        source_address=http_request.source_address,
        duration_ms=(time.perf_counter() - http_request.received_at) * 1000,
        trace_id=http_request.environ.get("tokenhouse.trace_id"),
    )
