"""The client credentials grant: RFC 6749 section 4.4.

Replaces the two steps of Authlib's grant: who asks, whether it may use this grant and what its token may say; then the
answer. Each of these questions is settled in a room of its own.
"""

from http import HTTPStatus
from typing import Any, Protocol

from authlib.oauth2.rfc6749 import grants

from app.errors import UnauthorizedClient
from app.oauth.policy import Policy, grant
from app.types import AccessToken, AccessTokenGrant, Authentication, Client, TokenRequest


class GrantRequest(TokenRequest, Protocol):
    """A token request, with what the steps of a grant leave on it for the events."""

    authentication: Authentication | None
    access_token: AccessToken | None


class GrantServer(Protocol):
    """What a grant needs of the authorization server."""

    policy: Policy

    def issue(self, client: Client, grant: AccessTokenGrant) -> AccessToken:
        """Sign a token for ``client``."""
        ...

    def authenticate(self, request: GrantRequest) -> Authentication:
        """Who sent ``request``."""
        ...

    def save_token(self, token: dict[str, Any], request: GrantRequest) -> None:
        """Note that ``request`` gets ``token``; nothing is stored."""
        ...


class ClientCredentialsGrant(grants.ClientCredentialsGrant):
    """A token for the client itself, never with a refresh token (section 4.4.3)."""

    PARAMETERS = frozenset({"grant_type", "scope", "resource"})

    request: GrantRequest  # type: ignore[assignment]
    server: GrantServer

    def validate_token_request(self) -> None:
        """Authenticate the client and see that it may use this grant.

        :raises InvalidClient: it did not prove who it is.
        :raises UnauthorizedClient: the grant is not among its grant types.
        """
        authentication = self.server.authenticate(self.request)
        if not authentication.client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClient(client_id=authentication.client.client_id)

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:  # type: ignore[override]
        """Settle what the token may say, sign it, and put the answer of section 5.1 together.

        :returns: status, body, headers.
        :raises InvalidScope: more was asked for than the client was granted.
        :raises InvalidTarget: likewise, of resources.
        """
        request = self.request
        assert request.authentication is not None  # noqa: S101 - validate_token_request has been called.
        client = request.authentication.client
        scope = request.parameters.get("scope")
        granted = grant(
            client,
            scope=scope,
            resources=request.resources,
            policy=self.server.policy,
            never_named=request.presented_secrets,
        )
        request.access_token = self.server.issue(client, granted)
        response: dict[str, Any] = {
            "access_token": request.access_token.encoded,
            "token_type": "Bearer",
            "expires_in": granted.lifetime_seconds,
        }
        if granted.scope:
            response["scope"] = " ".join(granted.scope)
        self.server.save_token(response, request)
        return HTTPStatus.OK, response, []
