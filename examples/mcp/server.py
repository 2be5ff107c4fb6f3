"""An MCP server whose tool needs a token of Tokenhouse, with the scope tools:read.

pip install mcp 'pyjwt[crypto]'; then
ISSUER=https://tokens.example.com MCP_URL=https://tools.example.com/mcp PORT=8000 python server.py
"""

import asyncio
import os
from urllib.parse import urlsplit

import jwt
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

ISSUER = os.environ["ISSUER"]
MCP_URL = os.environ["MCP_URL"]
"""Where clients reach this server: the identifier of the API, and the aud of its tokens."""
SCOPE = "tools:read"


class TokenVerifier:
    """Verifies access tokens offline: RFC 9068 section 4."""

    def __init__(self) -> None:
        self._keys = jwt.PyJWKClient(f"{ISSUER}/.well-known/jwks.json")

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what the token says; ``None`` if it is not valid here."""
        try:
            # The first call fetches the keys.
            claims = await asyncio.to_thread(self._verify, token)
        except jwt.PyJWTError:
            return None
        return AccessToken(
            token=token,
            client_id=claims["client_id"],
            scopes=claims.get("scope", "").split(),
            expires_at=claims["exp"],
            resource=MCP_URL,
            subject=claims["sub"],
        )

    def _verify(self, token: str) -> dict:
        if jwt.get_unverified_header(token).get("typ", "").lower().removeprefix("application/") != "at+jwt":
            raise jwt.InvalidTokenError("not an access token")
        return jwt.decode(
            token,
            self._keys.get_signing_key_from_jwt(token).key,
            algorithms=["RS256"],
            issuer=ISSUER,
            audience=MCP_URL,
            options={"require": ["exp", "iss", "aud", "client_id"]},
        )


server = MCPServer(
    "tools",
    token_verifier=TokenVerifier(),
    auth=AuthSettings(
        issuer_url=ISSUER, resource_server_url=MCP_URL, required_scopes=[SCOPE], validate_token_resource=True
    ),
)


@server.tool()
def add_numbers(a: int, b: int) -> str:
    """Add two numbers."""
    caller = get_access_token()
    return f"{a + b}, for {caller.client_id if caller else 'nobody'}"


if __name__ == "__main__":
    host = urlsplit(MCP_URL).netloc
    server.run(
        "streamable-http",
        port=int(os.environ.get("PORT", "8000")),
        stateless_http=True,
        # The Host header that a proxy forwards.
        transport_security=TransportSecuritySettings(allowed_hosts=[host]),
    )
