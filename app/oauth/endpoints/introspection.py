"""``POST /oauth/introspect``: RFC 7662, and RFC 9701 for callers that want a signed response.

Any token that is not active, or that the caller may not introspect, is ``{"active": false}`` and nothing more
(section 2.2).
"""

from http import HTTPStatus
from typing import Any

from authlib.oauth2.rfc6749 import TokenEndpoint
from flask import Blueprint
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from app.audit.events import TokenIntrospected
from app.config.settings import Settings
from app.http.application import Request, Response, without_contexts
from app.http.forms import require_parameter
from app.oauth.authorization_server import Document, EndpointResponse, StrictRequest, TokenServer, request_facts
from app.oauth.services import Endpoint, OAuthServices
from app.reasons import TokenReason
from app.tokens.status import TokenStatus, may_introspect
from app.types import Metadata

PATH = "/oauth/introspect"
MEDIA_TYPE = "application/token-introspection+jwt"
TYP = "token-introspection+jwt"
"""RFC 9701 sections 4 and 5."""

_SHOWN_CLAIMS = ("scope", "client_id", "exp", "iat", "sub", "aud", "iss", "jti", "cnf")


class Introspection(TokenEndpoint):
    """Authlib's endpoint for introspection."""

    ENDPOINT_NAME = "introspection"
    PARAMETERS = frozenset({"token", "token_type_hint"})

    server: TokenServer

    def __init__(self, services: OAuthServices) -> None:
        super().__init__(services.server)
        self._services = services

    def create_endpoint_response(self, request: StrictRequest) -> EndpointResponse:  # type: ignore[override]
        """Respond to ``request``.

        :raises InvalidClient: the caller did not authenticate.
        :raises InvalidRequest: the token is missing.
        """
        caller = self.server.authenticate(request).client
        status = self._services.statuses.of_token(require_parameter(request.parameters, "token"))
        reason = status.reason if may_introspect(caller, status) else status.reason or TokenReason.NOT_FOR_THIS_CALLER
        jti = status.claims["jti"] if status.claims else None
        description: dict[str, Any] = {"active": False} if reason else _describe(status)
        self.server.emit(
            TokenIntrospected(
                request=request_facts(request.http_request),
                client_id=caller.client_id,
                active=reason is None,
                reason=reason,
                jti=jti,
            )
        )
        if _wants_it_signed(request.http_request):
            return HTTPStatus.OK, self._signed(description, caller.client_id), []
        return HTTPStatus.OK, description, []

    def _signed(self, description: dict[str, Any], audience: str) -> Document:
        claims = {
            "iss": self._services.settings.issuer,
            "aud": audience,
            "iat": int(self._services.clock().timestamp()),
            "token_introspection": description,
        }
        return Document(self._services.issuer.sign(claims, TYP).encode(), MEDIA_TYPE)


def _describe(status: TokenStatus) -> dict[str, Any]:
    claims = status.claims or {}
    confirmation = claims.get("cnf")
    is_dpop = isinstance(confirmation, dict) and "jkt" in confirmation
    description = {name: claims[name] for name in _SHOWN_CLAIMS if name in claims}
    return {"active": True, "token_type": "DPoP" if is_dpop else "Bearer", **description}


def _wants_it_signed(http_request: Request) -> bool:
    """Return whether the caller prefers the media type of RFC 9701; ``*/*`` means JSON."""
    accepted = parse_accept_header(http_request.environ.get("HTTP_ACCEPT"), MIMEAccept)
    named = [(kind.lower(), quality) for kind, quality in accepted]
    signed = max((quality for kind, quality in named if kind == MEDIA_TYPE), default=0)
    plain = max((quality for kind, quality in named if kind == "application/json"), default=0)
    return signed > plain or (signed == plain > 0 and named[0][0] == MEDIA_TYPE)


def _create_blueprint(services: OAuthServices) -> Blueprint:
    blueprint = Blueprint("introspection", __name__)
    services.server.register_endpoint(Introspection(services))

    @blueprint.post(PATH, provide_automatic_options=False)
    @without_contexts
    def introspect(http_request: Request) -> Response:
        return services.server.create_endpoint_response(Introspection.ENDPOINT_NAME, http_request)

    return blueprint


def _metadata(settings: Settings) -> Metadata:
    return {
        "introspection_endpoint": f"{settings.issuer}{PATH}",
        "introspection_signing_alg_values_supported": [settings.signing_alg],
    }


INTROSPECTION = Endpoint(_create_blueprint, _metadata, authenticates="introspection_endpoint")
