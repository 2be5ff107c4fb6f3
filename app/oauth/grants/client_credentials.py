"""The client credentials grant: RFC 6749 section 4.4.

It overrides the two steps of Authlib's grant: authenticate the client and check that it may use the grant; then
decide what the token contains, sign it and respond.
"""

from http import HTTPStatus
from typing import Any, Protocol

from authlib.oauth2.rfc6749 import grants

from app.errors import UnauthorizedClient
from app.oauth.policy import Policy, grant
from app.types import AccessToken, AccessTokenGrant, Authentication, Client, TokenRequest


class GrantRequest(TokenRequest, Protocol):
    """A token request, with what the grant adds to it for the events."""

    authentication: Authentication | None
    access_token: AccessToken | None


class GrantServer(Protocol):
    """What a grant needs of the authorization server."""

    policy: Policy

    def issue(self, client: Client, grant: AccessTokenGrant) -> AccessToken:
        """Sign a token for ``client``."""
        ...

    def authenticate(self, request: GrantRequest) -> Authentication:
        """Authenticate the client that sent ``request``."""
        ...

    def save_token(self, token: dict[str, Any], request: GrantRequest) -> None:
        """Emit the event of an issued token; nothing is stored."""
        ...


class ClientCredentialsGrant(grants.ClientCredentialsGrant):
    """A token for the client itself, never with a refresh token (section 4.4.3)."""

    PARAMETERS = frozenset({"grant_type", "scope", "resource"})

    request: GrantRequest  # type: ignore[assignment]
    server: GrantServer

    def validate_token_request(self) -> None:
        """Authenticate the client and check that it may use this grant.

        :raises InvalidClient: authentication failed.
        :raises UnauthorizedClient: the client may not use this grant.
        """
        authentication = self.server.authenticate(self.request)
        if not authentication.client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClient(client_id=authentication.client.client_id)

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:  # type: ignore[override]
        """Decide what the token contains, sign it, and build the response of section 5.1.

        :returns: status, body, headers.
        :raises InvalidScope: a scope that the client was not granted.
        :raises InvalidTarget: a resource that the client was not granted.
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
