"""``POST /oauth/revoke``: RFC 7009.

An unknown token and an expired one get the same 200 as a token that is revoked now: its caller need not care (section
2.2). A live token of another client is left alone and refused (section 2.1).
"""

from http import HTTPStatus
from typing import Any

from authlib.oauth2 import rfc7009

from app.audit.events import TokenRevoked
from app.config.settings import Settings
from app.errors import InvalidGrant
from app.http.forms import require_parameter
from app.oauth.requests import request_facts
from app.oauth.services import Endpoint, OAuthServices
from app.tokens.status import TokenStatus
from app.types import Client, Metadata

PATH = "/oauth/revoke"


class RevocationEndpoint(rfc7009.RevocationEndpoint):
    """Authlib's revocation endpoint for tokens of which nothing is stored but their revocation."""

    PARAMETERS = frozenset({"token", "token_type_hint"})

    def __init__(self, services: OAuthServices) -> None:
        super().__init__(services.server)
        self._services = services

    def query_token(self, token_string: str, token_type_hint: str | None) -> TokenStatus:  # noqa: ARG002 - A hint.
        """Return the status of a token from any source.

        :raises ServiceUnavailable: the database does not answer, or the key ring cannot be read.
        """
        return self._services.tokens.statuses.of_token(token_string)

    def revoke_token(self, token: TokenStatus, request: object) -> None:  # noqa: ARG002
        """Revoke an active token.

        :raises ServiceUnavailable: nothing was revoked, and the caller should retry (section 2.2.1).
        """
        self._services.tokens.revocations.revoke(token.as_revoked())

    def create_endpoint_response(self, request: Any) -> Any:
        """Respond to ``request``: status, body, headers.

        :raises InvalidClient: the caller did not authenticate.
        :raises InvalidRequest: the token is missing.
        :raises InvalidGrant: the token is another client's.
        """
        caller: Client = self.server.authenticate_client(request, self.CLIENT_AUTH_METHODS, self.ENDPOINT_NAME)
        token = self.query_token(require_parameter(request.form, "token"), request.form.get("token_type_hint"))
        if token.reason is None:
            if not token.check_client(caller):
                raise InvalidGrant
            self.revoke_token(token, request)
            self.server.send_signal("after_revoke_token", token=token, client=caller)
        self.server.emit(
            TokenRevoked(
                request=request_facts(request.http_request),
                client_id=caller.client_id,
                was_live=token.reason is None,
                reason=token.reason,
                jti=token.jti,
            )
        )
        return HTTPStatus.OK, {}, []


def _metadata(settings: Settings) -> Metadata:
    return {"revocation_endpoint": f"{settings.issuer}{PATH}"}


REVOCATION = Endpoint.of(RevocationEndpoint, PATH, _metadata, authenticates="revocation_endpoint")
