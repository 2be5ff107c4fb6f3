"""``POST /oauth/introspect``: RFC 7662, and RFC 9701 for callers that want a signed response.

Any token that is not active, or that the caller may not introspect, is ``{"active": false}`` and nothing more
(section 2.2).
"""

from http import HTTPStatus
from typing import Any

from authlib.oauth2 import rfc7662
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from app.audit.events import TokenIntrospected
from app.config.settings import Settings
from app.http.application import Request
from app.http.forms import require_parameter
from app.oauth.authorization_server import Document
from app.oauth.requests import request_facts
from app.oauth.services import Endpoint, OAuthServices
from app.reasons import TokenReason
from app.tokens.issuer import token_type
from app.tokens.status import TokenStatus, may_introspect
from app.types import Client, Metadata

PATH = "/oauth/introspect"
MEDIA_TYPE = "application/token-introspection+jwt"
TYP = "token-introspection+jwt"
"""RFC 9701 sections 4 and 5."""


class IntrospectionEndpoint(rfc7662.IntrospectionEndpoint):
    """Authlib's introspection endpoint for tokens of which nothing is stored."""

    PARAMETERS = frozenset({"token", "token_type_hint"})

    def __init__(self, services: OAuthServices) -> None:
        super().__init__(services.server)
        self._services = services

    def query_token(self, token_string: str, token_type_hint: str | None) -> TokenStatus:  # noqa: ARG002 - A hint.
        """Return the status of a token from any source.

        :raises ServiceUnavailable: the database does not answer, or the key ring cannot be read.
        """
        return self._services.tokens.statuses.of_token(token_string)

    def check_permission(self, token: TokenStatus, client: Client, request: object) -> bool:  # noqa: ARG002
        """Return whether ``client`` may introspect ``token``."""
        return may_introspect(client, token)

    def introspect_token(self, token: TokenStatus) -> dict[str, Any]:
        """Return the description of an active token: RFC 7662 section 2.2."""
        claims = token.claims or {}
        return {**claims, "active": True, "token_type": token_type(claims.get("cnf"))}

    def create_endpoint_response(self, request: Any) -> Any:
        """Respond to ``request``: status, body, headers.

        :raises InvalidClient: the caller did not authenticate.
        :raises InvalidRequest: the token is missing.
        """
        caller: Client = self.server.authenticate_client(request, self.CLIENT_AUTH_METHODS, self.ENDPOINT_NAME)
        token = self.query_token(require_parameter(request.form, "token"), request.form.get("token_type_hint"))
        reason = token.reason
        if reason is None and not self.check_permission(token, caller, request):
            reason = TokenReason.NOT_FOR_THIS_CALLER
        payload = {"active": False} if reason else self.introspect_token(token)
        self.server.emit(
            TokenIntrospected(
                request=request_facts(request.http_request),
                client_id=caller.client_id,
                active=reason is None,
                reason=reason,
                jti=token.jti,
            )
        )
        if _wants_it_signed(request.http_request):
            return HTTPStatus.OK, self._signed(payload, caller.client_id), []
        return HTTPStatus.OK, payload, []

    def _signed(self, payload: dict[str, Any], audience: str) -> Document:
        claims = {
            "iss": self._services.settings.issuer,
            "aud": audience,
            "iat": int(self._services.clock().timestamp()),
            "token_introspection": payload,
        }
        return Document(self._services.tokens.issuer.sign(claims, TYP).encode(), MEDIA_TYPE)


def _wants_it_signed(http_request: Request) -> bool:
    """Return whether the caller prefers the media type of RFC 9701; ``*/*`` means JSON."""
    accepted = parse_accept_header(http_request.environ.get("HTTP_ACCEPT"), MIMEAccept)
    named = [(kind.lower(), quality) for kind, quality in accepted]
    signed = max((quality for kind, quality in named if kind == MEDIA_TYPE), default=0)
    plain = max((quality for kind, quality in named if kind == "application/json"), default=0)
    return signed > plain or (signed == plain > 0 and named[0][0] == MEDIA_TYPE)


def _metadata(settings: Settings) -> Metadata:
    return {
        "introspection_endpoint": f"{settings.issuer}{PATH}",
        "introspection_signing_alg_values_supported": [settings.signing_alg],
    }


INTROSPECTION = Endpoint.of(
    IntrospectionEndpoint, PATH, _metadata, authenticates="introspection_endpoint", is_protected_resource=True
)
