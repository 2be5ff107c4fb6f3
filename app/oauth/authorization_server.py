"""Customizes Authlib's AuthorizationServer: strict requests, uniform refusals, an event for each response.

RFC 6749 sections 2.3, 3.2 and 5. Stock Authlib also reads parameters from the query string, takes the first of
repeated ones, accepts two authentications at once, and distinguishes an unknown client from a wrong secret. Here a
request is one complete form, each parameter once, with exactly one authentication.

Hooks have Authlib's names and do what its documentation says. ``create_app`` registers what they work with.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from email.utils import format_datetime
from typing import Any, NamedTuple

from authlib.integrations.flask_oauth2 import client_authenticated, token_revoked
from authlib.oauth2 import rfc6749
from orjson import dumps as encode_json

from app.audit.events import Event, Events, RefusalCounted, RequestRefused, TokenIssued, TokenRefused
from app.blocking import blocking
from app.clients.scopes import parse_scope
from app.errors import (
    InvalidClient,
    InvalidRequest,
    OAuthError,
    RateLimited,
    ServerError,
    ServiceUnavailable,
    UnsupportedGrantType,
    render,
)
from app.http.application import Request, Response
from app.http.forms import require_parameter
from app.oauth.client_certificates import ClientCertificates
from app.oauth.policy import Policy
from app.oauth.rate_limits import RateLimits
from app.oauth.requests import StrictRequest, parse_request, request_facts
from app.reasons import RefusalReason
from app.tokens.issuer import AccessToken
from app.types import Authentication, Authenticator, Client, Clock, SenderConstraint

log = logging.getLogger(__name__)

TOKEN = "token"  # noqa: S105 - A name.
"""The name of the token endpoint, among those of :meth:`AuthorizationServer.register_endpoint`."""

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


class AuthorizationServer(rfc6749.AuthorizationServer):
    """The authorization server: parses a request, finds its grant or endpoint, renders the response, emits the event.

    :param query_client: returns the client with an id, or ``None``.
    :param origin: scheme, host and port of the issuer.
    :param policy: what a token may contain.
    :param limits: refuses requests beyond the rate limits.
    :param certificates: reads the certificates of callers.
    :param timed: records how long authentication and the signature take.
    """

    def __init__(  # noqa: PLR0913 - What a server is made of.
        self,
        *,
        query_client: Callable[[str], Client | None],
        origin: str,
        policy: Policy,
        events: Events,
        clock: Clock,
        limits: RateLimits,
        certificates: ClientCertificates,
        timed: Timed = _untimed,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self.query_client = query_client  # type: ignore[method-assign, assignment]  # As Authlib's integrations do.
        self.policy = policy
        self._origin = origin
        self._events = events
        self._clock = clock
        self.limits = limits
        self.certificates = certificates
        self._pause = pause
        self._delay_slots = threading.BoundedSemaphore(MOST_DELAYED)
        self._methods: dict[str, Authenticator] = {}
        self._sender_constraints: list[SenderConstraint] = []
        self._parameters: dict[str, set[str]] = {TOKEN: set()}
        self._known: dict[str, set[str]] = {}
        self._resource_metadata: dict[str, str | None] = {}
        self._timed = timed
        self.record_api_use: Callable[[str, tuple[str, ...], str], None] = lambda *_: None
        """Called for each token for APIs, with client id, names of the APIs and scope."""
        self._authenticate: dict[str, Callable[[StrictRequest], Authentication]] = {}

    def register_client_auth_method(self, method: str, func: Authenticator) -> None:
        """Register a client authentication method.

        :param func: tells whether a request uses the method, and authenticates: a request must use exactly one.
        """
        self._methods[method] = func
        self._authenticate[method] = self._timed("authenticate", func.authenticate)
        self._learn_parameters()

    def register_sender_constraint(self, constraint: SenderConstraint) -> None:
        """Register a sender constraint, for which Authlib has no hook."""
        self._sender_constraints.append(constraint)

    def register_token_generator(self, grant_type: str, func: Callable[..., AccessToken]) -> None:  # type: ignore[override]
        """Register the token generator of ``grant_type``; ``default`` is for all other grants."""
        super().register_token_generator(grant_type, self._timed("sign", func))  # type: ignore[arg-type]  # The stubs want one class.

    def register_grant(self, grant_cls: Any, extensions: Any = None) -> None:
        """Register a subclass of Authlib's grants, with the ``PARAMETERS`` that it reads."""
        super().register_grant(grant_cls, extensions)
        self._parameters[TOKEN] |= grant_cls.PARAMETERS
        self._learn_parameters()

    def register_endpoint(self, endpoint: Any) -> None:
        """Register a further endpoint: a subclass of Authlib's with the ``PARAMETERS`` that it reads."""
        super().register_endpoint(endpoint)
        self._parameters[endpoint.ENDPOINT_NAME] = set(endpoint.PARAMETERS)
        self._resource_metadata[endpoint.ENDPOINT_NAME] = getattr(endpoint, "resource_metadata", None)
        self._learn_parameters()

    def _learn_parameters(self) -> None:
        """Update the parameters that each endpoint reads: its own and those of the authentication methods."""
        by_methods = [method.parameters for method in self._methods.values()]
        self._known = {name: own.union(*by_methods) for name, own in self._parameters.items()}

    def create_token_response(self, request: Any = None) -> Any:
        """Respond to a token request. Whatever happens, the response is JSON and an event is emitted."""
        return self._answer(TOKEN, request, self._issue)

    def create_endpoint_response(self, name: str, request: Any = None) -> Any:
        """Respond to a request at another endpoint, in the same way."""
        (endpoint,) = self._endpoints[name]  # type: ignore[attr-defined]  # The stubs lack it.
        return self._answer(name, request, endpoint)

    def _answer(self, endpoint: str, request: Request, act: Callable[[StrictRequest], EndpointResponse]) -> Response:
        parsed: StrictRequest | None = None
        try:
            parsed = self.create_oauth2_request(request, endpoint)
            status, body, headers = act(parsed)
            more = [*parsed.response_headers, *self._announce_expiry(parsed.authentication)]
            return self.handle_response(status, body, [*headers, *more])
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

        :raises InvalidRequest: it is not one complete form with each parameter once, or its certificate is not trusted.
        """
        if self.certificates.header in request.environ:
            self.certificates.require_trusted(request.environ)
        parsed = parse_request(request, f"{self._origin}{request.path}", self._known[endpoint])
        parsed.allows_memory = endpoint == TOKEN
        return parsed

    def get_token_grant(self, request: Any) -> rfc6749.BaseGrant:
        """Find the grant by ``grant_type``.

        :raises InvalidRequest: the parameter is missing.
        :raises UnsupportedGrantType: no such grant is registered.
        """
        try:
            return super().get_token_grant(request)
        except rfc6749.UnsupportedGrantTypeError:
            require_parameter(request.parameters, "grant_type")
            raise UnsupportedGrantType from None

    def authenticate_client(self, request: Any, methods: Collection[str], endpoint: str = TOKEN) -> Client:  # noqa: ARG002 - Authlib's.
        """Authenticate the client by exactly one of the registered methods (section 2.3).

        :param methods: not used: every endpoint accepts every registered method.
        :param endpoint: whose requests are counted.
        :raises InvalidRequest: the request uses several methods.
        :raises InvalidClient: the request uses no method, or authentication failed.
        :raises RateLimited: authentication failed too often, or the client makes too many requests.
        """
        try:
            request.authentication = self._authenticated(request)
        except InvalidClient as failure:
            self.limits.count_failure(failure, request.sent_client_id, request.source_address)
            raise
        client: Client = request.authentication.client
        request.client = client
        self.limits.count_request(endpoint, client)
        return client

    def _authenticated(self, request: Any) -> Authentication:
        certified, methods = self.certificates.header in request.environ, self._methods.values()
        presented = [one for one in methods if (certified or not one.needs_certificate) and one.is_presented(request)]
        if len(presented) > 1:
            raise InvalidRequest(
                RefusalReason.SEVERAL_AUTHENTICATIONS, "The request must authenticate the client exactly once."
            )
        if not presented:
            raise InvalidClient(RefusalReason.NO_AUTHENTICATION)
        request.auth_method = presented[0].name
        return self._authenticate[request.auth_method](request)

    def confirm_sender(self, request: Any) -> dict[str, str]:
        """Return what the token of ``request`` is bound to: its ``cnf`` (RFC 7800), empty for a bearer token.

        :raises OAuthError: a proof or certificate is missing or invalid.
        """
        confirmation: dict[str, str] = {}
        required: Sequence[str] = request.client.sender_constraints
        for constraint in self._sender_constraints:
            if constraint.header in request.environ or constraint.name in required:
                confirmation |= constraint.confirm(request)
        return confirmation

    def validate_requested_scope(self, scope: str | None) -> None:
        """Check the grammar of ``scope``. Which scopes a client was granted is left to the policy.

        :raises InvalidScope: it is malformed.
        """
        if scope is not None:
            parse_scope(scope)

    def generate_token(  # noqa: PLR0913, PLR0917 - Authlib's signature.
        self,
        grant_type: str,
        client: Any,
        user: Any = None,
        scope: str | None = None,
        expires_in: int | None = None,
        include_refresh_token: bool = False,  # noqa: FBT001, FBT002
        **contents: Any,
    ) -> AccessToken:
        """Sign a token with the generator that is registered for ``grant_type``, or for ``default``.

        :param contents: what Authlib's signature lacks, such as ``audiences``: see :class:`tokens.issuer`.
        :raises ServiceUnavailable: no key may sign now.
        """
        generators: Mapping[str, Callable[..., AccessToken]] = self._token_generators  # type: ignore[attr-defined]
        return (generators.get(grant_type) or generators["default"])(
            grant_type=grant_type,
            client=client,
            user=user,
            scope=scope,
            expires_in=expires_in,
            include_refresh_token=include_refresh_token,
            **contents,
        )

    def save_token(self, token: Any, request: Any) -> None:
        """Emit the event of an issued token. Nothing is stored: a token is a signed statement."""
        authentication: Authentication = request.authentication
        self._events.emit(
            TokenIssued(
                request=request_facts(request.http_request),
                client_id=authentication.client.client_id,
                auth_method=authentication.method,
                secret_id=authentication.secret_id,
                grant_type=request.parameters["grant_type"],
                scope=token.get("scope", ""),
                audience=token.audiences,
                jti=token.jti,
                kid=token.kid,
                expires_in=token["expires_in"],
                from_memory=authentication.is_from_memory or None,
                cnf=token.confirmation or None,
                **request.assertion_facts,
            )
        )

    def send_signal(self, name: str, *arguments: Any, **facts: Any) -> None:
        """Send the signals of Authlib's Flask integration, if anybody receives them."""
        signal = _SIGNALS.get(name)
        if signal and signal.receivers:
            signal.send(self, *arguments, **facts)

    def emit(self, event: Event) -> None:
        """Emit the event of an endpoint."""
        self._events.emit(event)

    def handle_response(self, status: int, body: Any, headers: Iterable[tuple[str, str]] | Any) -> Response:
        """Make the HTTP response. Only a document that says so may be cached."""
        if isinstance(body, Document):
            return Response(body.content, status, headers, content_type=body.content_type)
        return Response(encode_json(body), status, [*headers, *NO_STORE], content_type="application/json")

    def handle_error_response(self, request: Any, error: Any, endpoint: str = TOKEN) -> Response:
        """Emit the event of a refused request, and render the error response.

        :param request: the :class:`StrictRequest`, or the HTTP request if it could not be parsed.
        :param error: an :class:`OAuthError`.
        """
        if isinstance(error, InvalidClient):
            error.resource_metadata = self._resource_metadata.get(endpoint)
        parsed = request if isinstance(request, StrictRequest) else None
        authentication = parsed.authentication if parsed else None
        facts: dict[str, Any] = {
            "request": request_facts(parsed.http_request if parsed else request),
            "client_id": authentication.client.client_id if authentication else error.client_id,
            "error": error.error,
            "status": int(error.status_code),
            "reason": error.reason,
            "detail": error.detail,
            **(parsed.assertion_facts if parsed else {}),
        }
        refusal: TokenRefused | RequestRefused
        if endpoint == TOKEN:
            facts |= self._requested(parsed) if parsed else {}
            refusal = TokenRefused(**facts)
        else:
            refusal = RequestRefused(endpoint=endpoint, **facts)
        limited = error if isinstance(error, RateLimited) else None
        source_address = refusal.request.source_address
        is_authenticated = authentication is not None or (limited is not None and limited.failure is None)
        if self.limits.count_refusal(error, source_address, is_authenticated=is_authenticated):
            sent_id_hash = None if is_authenticated else hash(parsed.sent_client_id if parsed else "")
            cause = (limited and limited.failure) or refusal.reason
            self._events.emit(RefusalCounted(refusal=refusal, sent_id_hash=sent_id_hash, cause=cause))
        else:
            self._events.emit(refusal)
        more = parsed.response_headers if parsed else []
        return self.handle_response(*render(error, [*more, *self._announce_expiry(authentication)]))

    def _requested(self, request: StrictRequest) -> dict[str, str | None]:
        """Return what a refused token request asked for: a grant type only if it is registered."""
        grant_types = {grant_cls.GRANT_TYPE for grant_cls, _ in self._token_grants}  # type: ignore[attr-defined]
        grant_type = request.parameters.get("grant_type")
        return {"auth_method": request.auth_method, "grant_type": grant_type if grant_type in grant_types else None}

    def _announce_expiry(self, authentication: Authentication | None) -> list[tuple[str, str]]:
        """Return a header with the expiry of the secret that was used, in its last 30 days."""
        ends = authentication.secret_expires_at if authentication else None
        if ends is None or ends > self._clock() + EXPIRY_ANNOUNCED_BEFORE:
            return []
        return [(EXPIRY_HEADER, format_datetime(ends, usegmt=True))]


_SIGNALS = {"after_authenticate_client": client_authenticated, "after_revoke_token": token_revoked}
