"""Authlib's AuthorizationServer, strict. The one room that bends Authlib.

RFC 6749 sections 2.3, 3.2 and 5. Stock Authlib reads parameters from the query string too, takes the first of repeated
ones, two authentications at once, and tells an unknown client from a wrong secret. Here a request is one complete form,
each parameter once, with exactly one authentication; and every answer of the token endpoint, good or bad, is an event.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    BaseGrant,
    OAuth2Request,
    UnsupportedGrantTypeError,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from flask import Response
from orjson import dumps as encode_json
from werkzeug.exceptions import BadRequest
from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_content_length, get_input_stream

from app.contracts import AccessToken, AccessTokenSource, Authentication, ClientAuthMethod, Clock
from app.errors import (
    BODY_LIMIT_BYTES,
    BodyTooLarge,
    InvalidClient,
    InvalidRequest,
    OAuthError,
    ServerError,
    UnsupportedGrantType,
    render,
)
from app.events import Events, RequestFacts, TokenIssued, TokenRefused
from app.policy import Policy
from app.web import Answer, Asked

log = logging.getLogger(__name__)

FORM = "application/x-www-form-urlencoded"
REPEATABLE = "resource"
"""The one parameter that may stand in a request several times: RFC 8707 section 2."""

EXPIRY_HEADER = "Tokenhouse-Secret-Expires"
EXPIRY_ANNOUNCED_BEFORE = timedelta(days=30)

NO_STORE = (("Cache-Control", "no-store"), ("Pragma", "no-cache"))
"""RFC 6749 section 5.1."""

# Far more than any request has, and few enough to make parsing cheap.
_PARAMETERS_MAX = 100


class StrictRequest(OAuth2Request):
    """A token request as the rest of the house sees it: :class:`app.contracts.TokenRequest`.

    ``authentication`` and ``access_token`` are filled in on the way, for the events.
    """

    # What Authlib's own constructor sets. It looks each time whether the URL is one of https; ours comes from the
    # settings, which were checked at the start, and what a proxy or a Host header says must not matter.
    client: Any = None
    uri = "https://localhost/"
    _body = None

    def __init__(self, asked: Asked, authorization: str | None, pairs: Sequence[tuple[str, str]]) -> None:
        self.asked = asked
        self.method = asked.method
        self.source_address: str | None = asked.source_address
        self.presented_secrets: list[str] = []
        self.authorization = authorization
        self.resources: Sequence[str] = [value for name, value in pairs if name == REPEATABLE]
        self.parameters: Mapping[str, str] = {name: value for name, value in pairs if name != REPEATABLE}
        self.payload = BasicOAuth2Payload(self.parameters)
        self.authentication: Authentication | None = None
        self.access_token: AccessToken | None = None


class TokenServer(AuthorizationServer):
    """The authorization server: reads a request, finds its grant, renders the answer, tells the events.

    :param grants: classes on Authlib's grants, each with the ``PARAMETERS`` that it reads.
    :param methods: the ways to authenticate, of which a request must use exactly one.
    """

    def __init__(  # noqa: PLR0913 - What a server is made of.
        self,
        *,
        grants: Sequence[type[Any]],
        methods: Sequence[ClientAuthMethod],
        tokens: AccessTokenSource,
        policy: Policy,
        events: Events,
        clock: Clock,
    ) -> None:
        super().__init__()
        self._clock = clock
        self.tokens = tokens
        self.policy = policy
        self._methods = methods
        self._events = events
        self._known_parameters = set[str]().union(*(method.parameters for method in methods))
        for grant in grants:
            self.register_grant(grant)
            self._known_parameters |= grant.PARAMETERS

    def create_token_response(self, request: Asked) -> Response:  # type: ignore[override]
        """Answer a token request; whatever happens, the answer is JSON and an event tells of it."""
        parsed: StrictRequest | None = None
        try:
            parsed = self.create_oauth2_request(request)
            grant: Any = self.get_token_grant(parsed)
            grant.validate_token_request()
            status, body, headers = grant.create_token_response()
            return self.handle_response(status, body, [*headers, *self._announce_expiry(parsed.authentication)])
        except OAuthError as error:
            return self.handle_error_response(parsed or request, error)
        except Exception as error:
            log.exception("a token request failed, request_id=%s", request.request_id)
            return self.handle_error_response(parsed or request, ServerError(f"unexpected_{type(error).__name__}"))

    def create_oauth2_request(self, request: Asked) -> StrictRequest:
        """Read ``request`` strictly.

        :raises InvalidRequest: it is not one complete form with each parameter once.
        """
        environ = request.environ
        if environ.get("QUERY_STRING"):
            self._refuse_query_parameters(request)
        _require_form(environ)
        pairs = _parse_form(_read_whole_body(environ))
        _refuse_repeated_parameters(pairs, self._known_parameters)
        return StrictRequest(request, _read_authorization(environ), pairs)

    def get_token_grant(self, request: StrictRequest) -> BaseGrant:  # type: ignore[override]
        """Find the grant by ``grant_type``.

        :raises InvalidRequest: the parameter is missing.
        :raises UnsupportedGrantType: no such grant is registered.
        """
        if "grant_type" not in request.parameters:
            raise InvalidRequest("missing_parameter", "The parameter grant_type is missing.")
        try:
            return super().get_token_grant(request)
        except UnsupportedGrantTypeError:
            raise UnsupportedGrantType from None

    def authenticate(self, request: StrictRequest) -> Authentication:
        """Who sent ``request``, by exactly one of the registered methods (section 2.3).

        :raises InvalidRequest: it uses several.
        :raises InvalidClient: it uses none, or the one it uses fails.
        """
        presented = [method for method in self._methods if method.is_presented(request)]
        if len(presented) > 1:
            raise InvalidRequest("several_authentications", "The request must authenticate the client exactly once.")
        if not presented:
            raise InvalidClient("no_authentication")
        request.authentication = presented[0].authenticate(request)
        request.client = request.authentication.client
        return request.authentication

    def save_token(self, token: dict[str, Any], request: StrictRequest) -> None:  # type: ignore[override]
        """Tell that a token was issued. Nothing is stored: a token is a signed statement."""
        assert request.authentication and request.access_token  # noqa: S101, PT018 - A grant ran to its end.
        decision = request.access_token.decision
        self._events.emit(
            TokenIssued(
                request=_facts(request.asked),
                client_id=request.authentication.client.client_id,
                auth_method=request.authentication.method,
                secret_id=request.authentication.secret_id,
                grant_type=request.parameters["grant_type"],
                scope=" ".join(decision.scope),
                audience=decision.audiences,
                jti=request.access_token.jti,
                kid=request.access_token.kid,
                expires_in=token["expires_in"],
            )
        )

    def handle_response(  # type: ignore[override]
        self, status: int, body: Mapping[str, Any], headers: Iterable[tuple[str, str]]
    ) -> Response:
        """Make the HTTP answer, never to be stored by a cache."""
        return Answer(encode_json(body), status, [*headers, *NO_STORE], content_type="application/json")

    def handle_error_response(  # type: ignore[override]
        self, request: StrictRequest | Asked, error: OAuthError
    ) -> Response:
        """Tell that a token was refused and why; render only what the caller may know.

        :param request: as far as it could be read.
        """
        asked: Any = request
        authentication = None
        if isinstance(request, StrictRequest):
            asked, authentication = request.asked, request.authentication
        self._events.emit(
            TokenRefused(
                request=_facts(asked),
                client_id=authentication.client.client_id if authentication else error.client_id,
                error=error.error,
                status=int(error.status_code),
                reason=error.reason,
                detail=error.description if error.description != type(error).description else None,
            )
        )
        return self.handle_response(*render(error, self._announce_expiry(authentication)))

    def _announce_expiry(self, authentication: Authentication | None) -> list[tuple[str, str]]:
        """Say when the secret that was used ends, in its last days; to its owner alone."""
        ends = authentication.secret_expires_at if authentication else None
        if ends is None or ends > self._clock() + EXPIRY_ANNOUNCED_BEFORE:
            return []
        return [(EXPIRY_HEADER, format_datetime(ends, usegmt=True))]

    def _refuse_query_parameters(self, request: Asked) -> None:
        """Refuse a known parameter in the query string, where proxies log it; others' are ignored (section 2.3.1)."""
        if not self._known_parameters.isdisjoint(request.args):
            name = next(name for name in sorted(self._known_parameters) if name in request.args)
            raise InvalidRequest("query_parameter", f"The parameter {name} must be in the body, not in the URL.")


def _require_form(environ: Mapping[str, Any]) -> None:
    content_type = environ.get("CONTENT_TYPE", "")
    is_form = content_type == FORM or parse_options_header(content_type)[0].lower() == FORM
    if not is_form or environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise InvalidRequest("not_a_form", f"The content type must be {FORM}.")


def _read_whole_body(environ: dict[str, Any]) -> bytes:
    """Read the body once it is known to be complete and not too long: a cut one would be a smaller scope."""
    declared = get_content_length(environ)
    if declared is not None and declared > BODY_LIMIT_BYTES:
        raise BodyTooLarge
    try:
        is_cut_already = "wsgi.input_terminated" in environ
        stream = environ["wsgi.input"] if is_cut_already else get_input_stream(environ)
        body: bytes = stream.read(BODY_LIMIT_BYTES + 1)
    except (BadRequest, OSError):
        raise InvalidRequest("incomplete_body", "The request body is incomplete.") from None
    if len(body) > BODY_LIMIT_BYTES:
        raise BodyTooLarge
    if declared is not None and len(body) != declared:
        raise InvalidRequest("incomplete_body", "The request body is incomplete.")
    return body


def _parse_form(body: bytes) -> list[tuple[str, str]]:
    """Decode the form; an empty parameter is an absent one (section 3.2)."""
    try:
        parts = body.decode().replace("+", " ").split("&", _PARAMETERS_MAX)
        if len(parts) > _PARAMETERS_MAX:
            raise ValueError("too many parameters")  # noqa: TRY301 - As what cannot be decoded is.
        # What parse_qsl does, in a third of its time; a test holds the two together.
        pairs = [(_decoded(name), _decoded(value)) for name, _, value in map(_at_equals, parts)]
    except ValueError:
        raise InvalidRequest("malformed_form", "The body must be a form in UTF-8.") from None
    return [(name, value) for name, value in pairs if value]


def _at_equals(part: str) -> tuple[str, str, str]:
    return part.partition("=")


def _decoded(text: str) -> str:
    return unquote(text, errors="strict") if "%" in text else text


def _refuse_repeated_parameters(pairs: Sequence[tuple[str, str]], known: set[str]) -> None:
    """Refuse what stands twice (section 3.2); only a known name comes back in the answer."""
    if len({name for name, _ in pairs}) == len(pairs):
        return
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen and name != REPEATABLE:
            told = f"The parameter {name} is repeated." if name in known else "A parameter is repeated."
            raise InvalidRequest("repeated_parameter", told)
        seen.add(name)


def _read_authorization(environ: Mapping[str, Any]) -> str | None:
    """The header's value. Servers join repeated headers with a comma, which stands in no valid Basic credentials."""
    value: str = environ.get("HTTP_AUTHORIZATION", "").strip(" \t")
    if value.lower().startswith("basic") and "," in value:
        raise InvalidRequest("repeated_authorization", "The request must authenticate the client exactly once.")
    return value or None


def _facts(asked: Asked) -> RequestFacts:
    return RequestFacts(
        request_id=asked.request_id,
        source_address=asked.source_address,
        duration_ms=(time.perf_counter() - asked.received_at) * 1000,
    )
