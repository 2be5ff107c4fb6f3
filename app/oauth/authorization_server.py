"""Customizes Authlib's AuthorizationServer: strict requests, uniform refusals, an event for each response.

RFC 6749 sections 2.3, 3.2 and 5. Stock Authlib also reads parameters from the query string, takes the first of
repeated ones, accepts two authentications at once, and distinguishes an unknown client from a wrong secret. Here a
request is one complete form, each parameter once, with exactly one authentication.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from email.utils import format_datetime
from typing import Any, NamedTuple

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    BaseGrant,
    OAuth2Request,
    UnsupportedGrantTypeError,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from orjson import dumps as encode_json

from app.audit.events import Event, Events, RequestFacts, RequestRefused, TokenIssued, TokenRefused
from app.blocking import blocking
from app.errors import (
    InvalidClient,
    InvalidRequest,
    OAuthError,
    ServerError,
    ServiceUnavailable,
    UnsupportedGrantType,
    render,
)
from app.http.application import Request, Response
from app.http.forms import REPEATABLE, read_authorization, read_form, require_parameter
from app.oauth.policy import Policy
from app.reasons import RefusalReason
from app.tokens.issuer import AccessTokenIssuer
from app.types import AccessToken, AccessTokenGrant, Authentication, Authenticator, Client, Clock

log = logging.getLogger(__name__)

TOKEN = "token"  # noqa: S105 - A name.
"""The name of the token endpoint, among those of :meth:`TokenServer.register_endpoint`."""

EXPIRY_HEADER = "Tokenhouse-Secret-Expires"
EXPIRY_ANNOUNCED_BEFORE = timedelta(days=30)

ONE_SECOND = timedelta(seconds=1)
LONGEST_DELAY_SECONDS = 2.0
"""If a longer delay would be needed, the clocks of two machines differ, and waiting would not help."""
DELAY_MARGIN_SECONDS = 0.01
"""A clock that is being adjusted runs a little slower than a sleep."""
MOST_DELAYED = 3
"""At most this many requests per worker may block here; others get 503 with ``Retry-After``."""

NO_STORE = (("Cache-Control", "no-store"), ("Pragma", "no-cache"))
"""RFC 6749 section 5.1."""


Timed = Callable[[str, Callable[..., Any]], Callable[..., Any]]
"""Wraps a function, so that its duration is recorded as that of the named part of a token request."""


def _untimed(_part: str, act: Callable[..., Any]) -> Callable[..., Any]:
    return act


class Document(NamedTuple):
    """A response body that is not JSON."""

    content: bytes
    content_type: str


EndpointResponse = tuple[int, Mapping[str, Any] | Document, list[tuple[str, str]]]
"""Status, body, headers."""


class StrictRequest(OAuth2Request):
    """A parsed request: the :class:`app.types.TokenRequest` that grants and methods get.

    ``authentication`` and ``access_token`` are filled in on the way, for the events.
    """

    # Replaces Authlib's constructor, which checks for each request whether the URL is https. Our URL is in the
    # settings and was checked at the start; what a proxy or a Host header says must not matter.
    client: Any = None
    uri = "https://localhost/"
    _body = None

    def __init__(self, http_request: Request, authorization: str | None, pairs: Sequence[tuple[str, str]]) -> None:
        self.http_request = http_request
        self.method = http_request.method
        self.source_address: str | None = http_request.source_address
        self.presented_secrets: list[str] = []
        self.authorization = authorization
        self.resources: Sequence[str] = [value for name, value in pairs if name == REPEATABLE]
        self.parameters: Mapping[str, str] = {name: value for name, value in pairs if name != REPEATABLE}
        self.payload = BasicOAuth2Payload(self.parameters)
        self.authentication: Authentication | None = None
        self.access_token: AccessToken | None = None
        self.auth_method: str | None = None


class TokenServer(AuthorizationServer):
    """The authorization server: parses a request, finds its grant or endpoint, renders the response, emits the event.

    :param grants: subclasses of Authlib's grants, each with the ``PARAMETERS`` that it reads.
    :param methods: the authentication methods, of which a request must use exactly one.
    :param timed: records how long authentication and the signature take.
    """

    def __init__(  # noqa: PLR0913 - What a server is made of.
        self,
        *,
        grants: Sequence[type[Any]],
        methods: Sequence[Authenticator],
        tokens: AccessTokenIssuer,
        policy: Policy,
        events: Events,
        clock: Clock,
        timed: Timed = _untimed,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._pause = pause
        self._delay_slots = threading.BoundedSemaphore(MOST_DELAYED)
        self.issue: Callable[[Client, AccessTokenGrant], AccessToken] = timed("sign", tokens.issue)
        self._authenticate_by: Callable[[Authenticator, StrictRequest], Authentication] = timed(
            "authenticate", lambda method, request: method.authenticate(request)
        )
        self.policy = policy
        self._methods = methods
        self._events = events
        by_authentication = set[str]().union(*(method.parameters for method in methods))
        self._parameters = {TOKEN: by_authentication.union(*(grant.PARAMETERS for grant in grants))}
        self._by_authentication = by_authentication
        self._grant_types = {grant.GRANT_TYPE for grant in grants}
        for grant in grants:
            self.register_grant(grant)

    def register_endpoint(self, endpoint: Any) -> None:
        """Register a further endpoint: a subclass of Authlib's with the ``PARAMETERS`` that it reads."""
        super().register_endpoint(endpoint)
        self._parameters[endpoint.ENDPOINT_NAME] = self._by_authentication | endpoint.PARAMETERS

    def create_token_response(self, request: Request) -> Response:  # type: ignore[override]
        """Respond to a token request. Whatever happens, the response is JSON and an event is emitted."""
        return self._answer(TOKEN, request, self._issue)

    def create_endpoint_response(self, name: str, request: Request) -> Response:  # type: ignore[override]
        """Respond to a request at another endpoint, in the same way."""
        (endpoint,) = self._endpoints[name]  # type: ignore[attr-defined]  # The stubs lack it.
        return self._answer(name, request, endpoint.create_endpoint_response)

    def _answer(self, endpoint: str, request: Request, act: Callable[["StrictRequest"], EndpointResponse]) -> Response:
        parsed: StrictRequest | None = None
        try:
            parsed = self.create_oauth2_request(request, endpoint)
            status, body, headers = act(parsed)
            return self.handle_response(status, body, [*headers, *self._announce_expiry(parsed.authentication)])
        except OAuthError as error:
            return self.handle_error_response(parsed or request, error, endpoint)
        except Exception as error:
            log.exception("a request failed, request_id=%s endpoint=%s", request.request_id, endpoint)
            fault = ServerError(RefusalReason.UNEXPECTED.caused_by(type(error).__name__))
            return self.handle_error_response(parsed or request, fault, endpoint)

    def _issue(self, request: StrictRequest) -> EndpointResponse:
        grant: Any = self.get_token_grant(request)
        grant.validate_token_request()
        self.delay_after_revocation(request.client)
        answered: EndpointResponse = grant.create_token_response()
        return answered

    def delay_after_revocation(self, client: Client) -> None:
        """Wait out the second in which tokens of ``client`` were revoked: a token of that second would be revoked too.

        :raises ServiceUnavailable: the second does not end, or too many requests wait.
        """
        revoked_at = client.tokens_not_before
        if revoked_at is None or revoked_at < self._clock() - ONE_SECOND:
            return
        left = (revoked_at + ONE_SECOND - self._clock()).total_seconds()
        if 0 < left <= LONGEST_DELAY_SECONDS and self._delay_slots.acquire(blocking=False):
            try:
                with blocking:
                    self._pause(left + DELAY_MARGIN_SECONDS)
            finally:
                self._delay_slots.release()
        if revoked_at + ONE_SECOND > self._clock():
            raise ServiceUnavailable(RefusalReason.TOKENS_JUST_REVOKED)

    def create_oauth2_request(self, request: Request, endpoint: str = TOKEN) -> StrictRequest:
        """Parse ``request`` strictly.

        :raises InvalidRequest: it is not one complete form with each parameter once.
        """
        environ, known = request.environ, self._parameters[endpoint]
        if environ.get("QUERY_STRING"):
            _refuse_query_parameters(request, known)
        pairs = [] if request.method in {"GET", "HEAD"} else read_form(environ, known)
        return StrictRequest(request, read_authorization(environ), pairs)

    def get_token_grant(self, request: StrictRequest) -> BaseGrant:  # type: ignore[override]
        """Find the grant by ``grant_type``.

        :raises InvalidRequest: the parameter is missing.
        :raises UnsupportedGrantType: no such grant is registered.
        """
        require_parameter(request.parameters, "grant_type")
        try:
            return super().get_token_grant(request)
        except UnsupportedGrantTypeError:
            raise UnsupportedGrantType from None

    def authenticate(self, request: StrictRequest) -> Authentication:
        """Authenticate the client by exactly one of the registered methods (section 2.3).

        :raises InvalidRequest: the request uses several methods.
        :raises InvalidClient: the request uses no method, or authentication failed.
        """
        presented = [method for method in self._methods if method.is_presented(request)]
        if len(presented) > 1:
            raise InvalidRequest(
                RefusalReason.SEVERAL_AUTHENTICATIONS, "The request must authenticate the client exactly once."
            )
        if not presented:
            raise InvalidClient(RefusalReason.NO_AUTHENTICATION)
        request.auth_method = presented[0].name
        request.authentication = self._authenticate_by(presented[0], request)
        request.client = request.authentication.client
        return request.authentication

    def save_token(self, token: dict[str, Any], request: StrictRequest) -> None:  # type: ignore[override]
        """Emit the event of an issued token. Nothing is stored: a token is a signed statement."""
        assert request.authentication and request.access_token  # noqa: S101, PT018 - A grant ran to its end.
        grant = request.access_token.grant
        self._events.emit(
            TokenIssued(
                request=request_facts(request.http_request),
                client_id=request.authentication.client.client_id,
                auth_method=request.authentication.method,
                secret_id=request.authentication.secret_id,
                grant_type=request.parameters["grant_type"],
                scope=" ".join(grant.scope),
                audience=grant.audiences,
                jti=request.access_token.jti,
                kid=request.access_token.kid,
                expires_in=token["expires_in"],
            )
        )

    def emit(self, event: Event) -> None:
        """Emit the event of an endpoint."""
        self._events.emit(event)

    def handle_response(  # type: ignore[override]
        self, status: int, body: Mapping[str, Any] | Document, headers: Iterable[tuple[str, str]]
    ) -> Response:
        """Make the HTTP response. Only a document that says so may be cached."""
        if isinstance(body, Document):
            return Response(body.content, status, headers, content_type=body.content_type)
        return Response(encode_json(body), status, [*headers, *NO_STORE], content_type="application/json")

    def handle_error_response(  # type: ignore[override]
        self, request: StrictRequest | Request, error: OAuthError, endpoint: str = TOKEN
    ) -> Response:
        """Emit the event of a refused request, and render the error response.

        :param request: as far as it could be parsed.
        """
        http_request: Any = request
        authentication = None
        if isinstance(request, StrictRequest):
            http_request, authentication = request.http_request, request.authentication
        facts: dict[str, Any] = {
            "request": request_facts(http_request),
            "client_id": authentication.client.client_id if authentication else error.client_id,
            "error": error.error,
            "status": int(error.status_code),
            "reason": error.reason,
            "detail": error.description if error.description != type(error).description else None,
        }
        if endpoint == TOKEN:
            facts |= self._requested(request)
            self._events.emit(TokenRefused(**facts))
        else:
            self._events.emit(RequestRefused(endpoint=endpoint, **facts))
        return self.handle_response(*render(error, self._announce_expiry(authentication)))

    def _requested(self, request: StrictRequest | Request) -> dict[str, str | None]:
        """Return what a refused token request asked for, if that is known here."""
        if not isinstance(request, StrictRequest):
            return {}
        grant_type = request.parameters.get("grant_type")
        known = grant_type if grant_type in self._grant_types else None
        return {"auth_method": request.auth_method, "grant_type": known}

    def _announce_expiry(self, authentication: Authentication | None) -> list[tuple[str, str]]:
        """Return a header with the expiry of the secret that was used, in its last 30 days."""
        ends = authentication.secret_expires_at if authentication else None
        if ends is None or ends > self._clock() + EXPIRY_ANNOUNCED_BEFORE:
            return []
        return [(EXPIRY_HEADER, format_datetime(ends, usegmt=True))]


def _refuse_query_parameters(request: Request, known: set[str]) -> None:
    """Refuse known parameters in the query string, where proxies log them; ignore others (section 2.3.1)."""
    if not known.isdisjoint(request.args):
        name = next(name for name in sorted(known) if name in request.args)
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
