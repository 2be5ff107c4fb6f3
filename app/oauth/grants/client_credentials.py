"""The client credentials grant: RFC 6749 section 4.4.

It overrides the two steps of Authlib's grant: validate the request (the client is authentic, may use the grant, and was
granted what it asks for), then sign the token and respond.
"""

from http import HTTPStatus
from typing import Any

from authlib.oauth2.rfc6749 import grants

from app.errors import UnauthorizedClient
from app.http.forms import AUDIENCE, RESOURCE
from app.oauth.policy import grant


class ClientCredentialsGrant(grants.ClientCredentialsGrant):
    """A token for the client itself, never with a refresh token (section 4.4.3)."""

    PARAMETERS = frozenset({"grant_type", "scope", RESOURCE, AUDIENCE})

    request: Any

    def validate_token_request(self) -> None:
        """Authenticate the client, check that it may use this grant, and decide what its token contains.

        :raises InvalidClient: authentication failed.
        :raises UnauthorizedClient: the client may not use this grant.
        :raises InvalidScope: a scope that the client was not granted.
        :raises InvalidTarget: a resource that the client was not granted.
        :raises OAuthError: a proof or certificate for a sender-constrained token is missing or invalid.
        """
        client: Any = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClient(client_id=client.client_id)
        self.validate_requested_scope()
        # Last, because each proof is accepted once.
        self.confirmation = self.server.confirm_sender(self.request)

    def validate_requested_scope(self) -> None:
        """Decide what the token contains: scope, audiences, lifetime."""
        request = self.request
        self.granted = grant(
            request.client,
            scope=request.parameters.get("scope"),
            resources=request.resources,
            audiences=request.audiences,
            policy=self.server.policy,
            never_named=request.presented_secrets,
        )

    def create_token_response(self) -> Any:
        """Sign the token, and return the response of section 5.1: status, body, headers.

        Authlib's own step would log the token.
        """
        granted = self.granted
        token = self.server.generate_token(
            self.GRANT_TYPE,
            self.request.client,
            scope=" ".join(granted.scope) or None,
            expires_in=granted.lifetime_seconds,
            audiences=granted.audiences,
            claims=granted.claims,
            signing_alg=granted.signing_alg,
            confirmation=self.confirmation,
        )
        self.server.save_token(token, self.request)
        if granted.apis:
            self.server.record_api_use(self.request.client.client_id, granted.apis, token.get("scope", ""))
        return HTTPStatus.OK, token, []
