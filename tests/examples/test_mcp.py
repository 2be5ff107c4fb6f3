"""MCP: agents of the official SDKs get tokens and call MCP servers, with a secret and with a key."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from examples.stage import EXAMPLES
from support.server import RunningServer, free_port, running_server, wait_until

from examples.programs import NODE_MODULES, install_node

MCP = EXAMPLES / "mcp"
LANGUAGES = ["python", pytest.param("node", marks=pytest.mark.node)]
QUIET = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONDONTWRITEBYTECODE": "1"}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPT = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose issuer is where it listens, with an agent that has a secret, and one that has a key."""
    port = str(free_port())
    folder = tmp_path_factory.mktemp("issuer")
    with running_server(folder, TOKENHOUSE_ISSUER=f"http://127.0.0.1:{port}", PORT=port) as server:
        create = ("clients", "create", "An agent", "--client-id")
        server.flask_json(*create, "with-secret", "--secret-out", str(folder / "secret"))
        key = ("--auth-method", "private_key_jwt", "--generate-key", str(folder / "key.pem"))
        server.flask_json(*create, "with-key", *key)
        yield server


class McpServer(NamedTuple):
    """A running MCP server."""

    url: str
    issuer: RunningServer

    def call(self, token: str | None) -> requests.Response:
        headers = {**ACCEPT, **({"Authorization": f"Bearer {token}"} if token else {})}
        return requests.post(self.url, json=CALL, headers=headers, timeout=10)

    def token(self, **parameters: str) -> str:
        client = self.issuer.create_client(audiences=(self.url, "https://other.example.com"), scope=("tools:read", "x"))
        return str(self.issuer.get_token(client, **parameters)["access_token"])


def program(language: str, name: str, folder: Path) -> list[str]:
    if language == "python":
        return [sys.executable, str(MCP / f"{name}.py")]
    home = folder / "mcp"
    return ["node", str((home if home.is_dir() else install_node("mcp", folder)) / f"{name}.mjs")]


@pytest.fixture(scope="module", params=LANGUAGES)
def mcp_server(
    request: pytest.FixtureRequest, issuer: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[McpServer]:
    folder, port = tmp_path_factory.mktemp("mcp"), free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    issuer.flask_json("apis", "create", f"tools-{port}", "--identifier", url, "--scope", "tools:read tools:write")
    for client_id in ("with-secret", "with-key"):
        issuer.flask_ok("apis", "grant", f"tools-{port}", client_id, "--scope", "tools:read")
    environment = os.environ | QUIET | {"ISSUER": issuer.settings.issuer, "MCP_URL": url, "PORT": str(port)}
    log = folder / "log"
    with log.open("wb") as output:
        command = program(request.param, "server", folder)
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: process.poll() is not None or is_served(url))
        assert process.poll() is None, log.read_text()
        yield McpServer(url, issuer)
    finally:
        process.terminate()
        process.wait(20)


def is_served(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.post(url, json={}, timeout=10).status_code == 401
    return False


@pytest.mark.parametrize("kind", ["with-secret", "with-key"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_an_agent_calls_a_tool(mcp_server: McpServer, language: str, kind: str, tmp_path: Path) -> None:
    issuer = mcp_server.issuer
    file = {"with-secret": ("CLIENT_SECRET_FILE", "secret"), "with-key": ("CLIENT_KEY_FILE", "key.pem")}[kind]
    credentials = {"CLIENT_ID": kind, file[0]: str(issuer.folder / file[1]), "ISSUER": issuer.settings.issuer}
    environment = os.environ | QUIET | credentials
    command = [*program(language, "agent", tmp_path), mcp_server.url, "add_numbers", '{"a": 2, "b": 3}']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"add_numbers\n5, for {kind}\n"), done.stderr
    event = [event for event in issuer.events() if event["event"] == "TokenIssued"][-1]
    assert (event["client_id"], event["audience"], event["scope"]) == (kind, [mcp_server.url], "tools:read")


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_agent_of_another_issuer_sends_its_credentials_nowhere(
    mcp_server: McpServer, language: str, tmp_path: Path
) -> None:
    issuer = mcp_server.issuer
    before = len(issuer.events())
    credentials = {"CLIENT_ID": "with-secret", "CLIENT_SECRET_FILE": str(issuer.folder / "secret")}
    environment = os.environ | QUIET | credentials | {"ISSUER": "https://tokens.example.com"}
    command = [*program(language, "agent", tmp_path), mcp_server.url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert not [event for event in issuer.events()[before:] if event["event"].startswith("Token")]


def test_the_server_refuses_other_tokens_and_names_its_metadata(mcp_server: McpServer) -> None:
    assert mcp_server.call(mcp_server.token(scope="tools:read")).status_code == 200
    refused = [mcp_server.call(token) for token in (None, "x", mcp_server.token(resource="https://other.example.com"))]
    for answer in refused:
        assert answer.status_code == 401
        origin, _, path = mcp_server.url.rpartition("/")
        document = f"{origin}/.well-known/oauth-protected-resource/{path}"
        assert f'resource_metadata="{document}"' in answer.headers["WWW-Authenticate"]
    described = requests.get(document, timeout=10).json()
    assert described["resource"] == mcp_server.url
    assert [server.rstrip("/") for server in described["authorization_servers"]] == [mcp_server.issuer.settings.issuer]
    assert mcp_server.call(mcp_server.token(scope="x")).status_code == 403


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.parametrize("scenario", ["auth/client-credentials-basic", "auth/client-credentials-jwt"])
@pytest.mark.parametrize("language", ["python", "node"])
def test_the_agents_pass_the_official_conformance_tests(language: str, scenario: str, tmp_path: Path) -> None:
    conformance = NODE_MODULES / "@modelcontextprotocol/conformance/dist/index.js"
    if not conformance.is_file():
        pytest.skip("npm has not installed the packages of Node: `make test` does")
    adapter = [sys.executable, str(Path(__file__).with_name("mcp_scenario.py"))]
    agent = shlex.join([*adapter, *program(language, "agent", tmp_path)])
    command = ["node", str(conformance), "client", "--command", agent, "--scenario", scenario, "--verbose"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | QUIET, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
