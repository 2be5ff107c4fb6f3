"""An agent without a user: it gets a token of Tokenhouse and calls a tool of an MCP server.

python agent.py URL [TOOL [ARGUMENTS]], with ISSUER and CLIENT_ID in the environment, and

- CLIENT_SECRET_FILE for a client with a secret, or
- CLIENT_KEY_FILE, and CLIENT_KEY_ALG unless it is RS256, for a client with a key.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx2
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken


class MemoryStorage:
    """Keeps the token of this process."""

    def __init__(self) -> None:
        self._token: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        """Return the token."""
        return self._token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep a token."""
        self._token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return nothing: the client was created with `flask clients create`."""

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Ignore."""


def authentication(url: str) -> httpx2.Auth:
    """Return what fetches tokens: by a signed assertion if there is a key, else by a secret."""
    known = {
        "server_url": url,
        "storage": MemoryStorage(),
        "client_id": os.environ["CLIENT_ID"],
        "issuer": os.environ["ISSUER"],
    }
    if key_file := os.environ.get("CLIENT_KEY_FILE"):
        signed = SignedJWTParameters(
            issuer=known["client_id"],
            subject=known["client_id"],
            signing_key=Path(key_file).read_text(),
            signing_algorithm=os.environ.get("CLIENT_KEY_ALG", "RS256"),
        )
        return PrivateKeyJWTOAuthProvider(assertion_provider=signed.create_assertion_provider(), **known)
    secret = Path(os.environ["CLIENT_SECRET_FILE"]).read_text().removesuffix("\n")
    return ClientCredentialsOAuthProvider(client_secret=secret, **known)


async def main(url: str, tool: str | None = None, arguments: str = "{}") -> None:
    """Print the names of the tools; call one, and print what it says."""
    async with (
        httpx2.AsyncClient(auth=authentication(url), timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        tools = await client.list_tools()
        print(*(tool.name for tool in tools.tools))
        if tool:
            result = await client.call_tool(tool, json.loads(arguments))
            print(result.content[0].text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
