"""``POST /oauth/revoke``: RFC 7009.

An unknown token, an expired one and another client's get the same 200: nothing is revoked, and nothing is revealed
(section 2.2).
"""

from http import HTTPStatus

from authlib.oauth2.rfc6749 import TokenEndpoint
from flask import Blueprint

from app.audit.events import TokenRevoked
from app.config.settings import Settings
from app.http.application import Request, Response, without_contexts
from app.http.forms import require_parameter
from app.oauth.authorization_server import EndpointResponse, StrictRequest, TokenServer, request_facts
from app.oauth.services import Endpoint, OAuthServices
from app.reasons import TokenReason
from app.types import Metadata

PATH = "/oauth/revoke"


class Revocation(TokenEndpoint):
    """Authlib's endpoint for revocation."""

    ENDPOINT_NAME = "revocation"
    PARAMETERS = frozenset({"token", "token_type_hint"})

    server: TokenServer

    def __init__(self, services: OAuthServices) -> None:
        super().__init__(services.server)
        self._services = services

    def create_endpoint_response(self, request: StrictRequest) -> EndpointResponse:  # type: ignore[override]
        """Respond to ``request``.

        :raises InvalidClient: the caller did not authenticate.
        :raises InvalidRequest: the token is missing.
        :raises ServiceUnavailable: nothing was revoked, and the caller should retry (section 2.2.1).
        """
        caller = self.server.authenticate(request).client
        status = self._services.statuses.of_token(require_parameter(request.parameters, "token"))
        reason, jti = status.reason, None
        if status.claims is not None:
            jti = status.claims["jti"]
            if status.claims["client_id"] != caller.client_id:
                reason = TokenReason.OTHER_CLIENTS_TOKEN
        if reason is None:
            self._services.revocations.revoke(status.as_revoked())
        self.server.emit(
            TokenRevoked(
                request=request_facts(request.http_request),
                client_id=caller.client_id,
                was_live=reason is None,
                reason=reason,
                jti=jti,
            )
        )
        return HTTPStatus.OK, {}, []


def _create_blueprint(services: OAuthServices) -> Blueprint:
    blueprint = Blueprint("revocation", __name__)
    services.server.register_endpoint(Revocation(services))

    @blueprint.post(PATH, provide_automatic_options=False)
    @without_contexts
    def revoke(http_request: Request) -> Response:
        return services.server.create_endpoint_response(Revocation.ENDPOINT_NAME, http_request)

    return blueprint


def _metadata(settings: Settings) -> Metadata:
    return {"revocation_endpoint": f"{settings.issuer}{PATH}"}


REVOCATION = Endpoint(_create_blueprint, _metadata, authenticates="revocation_endpoint")
