"""No secret, token, digest, pepper or key is logged, whatever is sent and run: two formats, everything at DEBUG."""

import base64
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from support.server import NewClient, RunningServer, basic

from app.config.values import PROJECT_FOLDER

GRANT = "grant_type=client_credentials"
PASTED = "ths_pasted-secret-0123456789abcdefghij"
"""What a person puts where it does not belong. It is nobody's secret, and may be one of another system."""


@dataclass
class Traffic:
    """A server at DEBUG to which all of the below was sent, and what must stand in no log of it."""

    server: RunningServer
    forbidden: dict[str, str] = field(default_factory=dict)
    logged: str = ""
    request_ids: list[str] = field(default_factory=list)

    def forbid(self, name: str, secret: str | bytes) -> None:
        """Look for ``secret`` and for its usual encodings."""
        raw = secret.encode() if isinstance(secret, str) else secret
        if isinstance(secret, str):
            self.forbidden[name] = secret
        self.forbidden[f"{name} in hex"] = raw.hex()
        self.forbidden[f"{name} in base64"] = base64.b64encode(raw).decode().rstrip("=")
        self.forbidden[f"{name} in base64url"] = base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def forbid_token(self, number: int, token: str) -> None:
        """A token is useless without its signature: neither may be there, nor the claims as they are encoded."""
        _, claims, signature = token.split(".")
        self.forbidden[f"token {number}"] = token
        self.forbidden[f"claims of token {number}"] = claims
        self.forbidden[f"signature of token {number}"] = signature

    def note(self, response: requests.Response) -> None:
        """Remember what the log must know of, and the token that the log must not."""
        self.request_ids.append(response.headers["X-Request-ID"])
        if response.headers["Content-Type"] == "application/json" and "access_token" in response.json():
            self.forbid_token(len(self.request_ids), response.json()["access_token"])


def send_secrets_through_every_path(traffic: Traffic, client: NewClient) -> None:
    """Right ones, wrong ones, and right ones in wrong places."""
    server, secret, authorized = traffic.server, client.secret, {"Authorization": client.basic}
    body = f"{GRANT}&client_id={client.client_id}&client_secret={secret}"
    traffic.note(server.post_token(GRANT, headers=authorized))
    traffic.note(server.post_token(f"{GRANT}&scope=read", headers=authorized))
    traffic.note(server.post_token(body))
    for sent in (
        f"scope={secret}",
        f"scope=read%20{'x' * 95}{secret}",
        f"resource=urn:{secret}",
        f"scope={secret[:20]}",
    ):
        traffic.note(server.post_token(f"{GRANT}&{sent}", headers=authorized))
        traffic.note(server.post_token(f"{body}&{sent}"))
    for one in (secret, PASTED):
        for sent in (
            f"{GRANT}&client_id={client.client_id}&client_secret={one}x",
            f"{GRANT}&client_id={one}&client_secret={one}",
            f"{GRANT}&client_id={one}",
            f"{GRANT}&client_secret={one}&client_secret={one}",
            f"{GRANT}&{one}={one}&{one}={one}",
            f"{GRANT}&unknown={one}",
            f"grant_type={one}",
            f"{body}&resource={one}",
            f"{body}&x=%FF&y={one}",
            f"{one}",
        ):
            traffic.note(server.post_token(sent))
            traffic.note(server.post_token(sent, headers=authorized))
        for query in ({"client_secret": one}, {one: one}, {"unknown": one}, {"scope": one}):
            traffic.note(server.post_token(GRANT, headers=authorized, params=query))
        for value in (one, f"Bearer {one}", f"Basic {one}", f"Basic {one}, Basic {one}", basic(one, one)):
            traffic.note(server.post_token(GRANT, headers={"Authorization": value}))
        named = {
            "User-Agent": one,
            "Cookie": f"s={one}",
            "X-Request-ID": one,
            "Referer": f"https://x/?s={one}",
            one: one,
        }
        traffic.note(server.post_token(GRANT, headers=authorized | named))
        traffic.note(server.post_token(GRANT, headers=authorized | {"Content-Type": one}))
        traffic.note(server.post_token(GRANT, headers=authorized | {"Content-Encoding": one}))
        for method in ("GET", "POST", "PUT", one.replace("_", "").upper()[:20]):
            for path in (f"/oauth/token/{one}", f"/{one}", f"/oauth/token?client_secret={one}", f"/livez?x={one}"):
                traffic.note(requests.request(method, f"{server.url}{path}", headers=authorized, timeout=10))
        send_what_the_parser_refuses(server, one.encode())
    ask_about_tokens(traffic, client)


def ask_about_tokens(traffic: Traffic, client: NewClient) -> None:
    """Tokens, whole, broken and in wrong places, at the endpoints that take them."""
    server, authorized = traffic.server, {"Authorization": client.basic}
    response = server.post_token(GRANT, headers=authorized)
    traffic.note(response)
    token = response.json()["access_token"]
    for path in ("introspect", "revoke", "revocations"):
        url = f"{server.url}/oauth/{path}"
        for sent in (token, f"{token}x", token[:-9], client.secret, PASTED):
            traffic.note(requests.post(url, {"token": sent, "token_type_hint": sent}, headers=authorized, timeout=10))
            traffic.note(requests.post(url, {"token": sent, "client_secret": sent}, timeout=10))
            traffic.note(requests.post(f"{url}?token={sent}", headers=authorized, timeout=10))
            traffic.note(requests.get(url, headers={"Authorization": f"Bearer {sent}"}, timeout=10))
            signed = {"Accept": "application/token-introspection+jwt"}
            traffic.note(requests.post(url, {"token": sent}, headers=authorized | signed, timeout=10))


def send_what_the_parser_refuses(server: RunningServer, secret: bytes) -> None:
    """Broken request lines and headers, and a body that ends too soon."""
    get, host = b"GET / HTTP/1.1\r\n", b"Host: x\r\n"
    for raw in (
        secret + b"\r\n\r\n",
        b"GET /" + secret + b" HTTP/9.9\r\n\r\n",
        b"GET /\xff" + secret + b" HTTP/1.1\r\n" + host + b"\r\n",
        secret.lower() + b" / HTTP/1.1\r\n" + host + b"\r\n",
        get + host + secret + b"\r\n\r\n",
        get + host + secret + b" : x\r\n\r\n",
        get + host + b"Authorization: Basic " + secret + b"\0\r\n\r\n",
        get + host + b"Authorization: " + secret + b"\r\nAuthorization: " + secret + b"\r\n\r\n",
        get + host + b"Content-Length: " + secret + b"\r\n\r\n",
        get + host + b"Transfer-Encoding: " + secret + b"\r\n\r\n",
        get + host + b"Expect: " + secret + b"\r\n\r\n",
        get + b"Host: " + secret + b" x\r\n\r\n",
        get + host + b"X: " + secret * 300 + b"\r\n\r\n",
        b"GET /" + secret * 200 + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"POST /oauth/token HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n" + secret + b"\r\n\r\n",
        b"POST /oauth/token HTTP/1.1\r\n" + host + b"Content-Length: 500\r\n\r\nclient_secret=" + secret,
    ):
        answers = server.send(raw)
        assert answers
        assert all(400 <= answer.status_code < 600 for answer in answers), raw


def run_commands(traffic: Traffic, client: NewClient, folder: Path) -> str:
    """All commands at DEBUG, where things go wrong too; what they log, and what they print but for the new secret."""
    server = traffic.server
    heard = []
    imported = "imported-secret-0123456789-abcdefghij"
    (folder / "imported").write_text(imported)
    (folder / "short").write_text("short-secret")
    traffic.forbid("imported secret", imported)
    traffic.forbidden["refused secret"] = "short-secret"
    made = server.flask("clients", "create", "Printed", "--json")
    traffic.forbid("printed secret", re.findall(r"ths_[A-Za-z0-9_-]{49}", made.stdout)[0])
    heard.append(made.stderr)
    taken_over = ("--client-id", "imported", "--secret-file", str(folder / "imported"))
    for arguments in (
        ("clients", "create", "Imported", *taken_over, "--secret-out", str(folder / "written")),
        ("clients", "create", "Twice", *taken_over),
        ("clients", "create", "Short", "--secret-file", str(folder / "short")),
        ("clients", "list", "--json"),
        ("clients", "show", client.client_id),
        ("clients", "update", client.client_id, "--description", "changed", "--json"),
        ("clients", "delete", "imported", "--yes"),
        ("keys", "generate", "--json"),
        ("db", "upgrade"),
    ):
        done = server.flask(*arguments)
        heard += [done.stdout, done.stderr]
    issued = server.flask("tokens", "issue", client.client_id)
    traffic.forbid_token(-1, issued.stdout.strip())
    heard.append(issued.stderr)
    for verb in ("inspect", "revoke", "revoke", "inspect"):
        done = server.flask("tokens", verb, "-", stdin=issued.stdout.encode())
        heard += [done.stdout, done.stderr]
    assert (folder / "written").read_text() == f"{imported}\n"
    return "\n".join(heard)


def forbid_what_is_stored(traffic: Traffic) -> None:
    server = traffic.server
    for number, (digest,) in enumerate(
        sqlite3.connect(server.folder / "tokenhouse.db").execute("SELECT digest FROM client_secrets").fetchall()
    ):
        traffic.forbid(f"digest {number}", digest)
    for pepper in server.settings.secret_peppers:
        traffic.forbid(f"pepper {pepper.id}", pepper.value.get_secret_value())
    for path in server.folder.glob("*.pem"):
        for number, line in enumerate(path.read_text().splitlines()[1:-1]):
            traffic.forbidden[f"line {number} of {path.name}"] = line


@pytest.fixture(scope="module", params=["json", "console"])
def traffic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    folder = tmp_path_factory.mktemp(f"logs-{request.param}")
    settings = {"TOKENHOUSE_LOG_LEVEL": "debug", "TOKENHOUSE_LOG_FORMAT": request.param}
    server = RunningServer(folder, **settings)
    server.prepare()
    client = server.create_client(scope=("read", "write"))
    server.start("--log-level", "debug")
    try:
        traffic = Traffic(server)
        traffic.forbid("secret", client.secret)
        traffic.forbid("pasted secret", PASTED)
        traffic.forbidden["pasted secret in capitals"] = PASTED.replace("_", "").upper()[:20]
        traffic.forbidden["Basic credentials"] = client.basic.removeprefix("Basic ").rstrip("=")
        send_secrets_through_every_path(traffic, client)
        commands = run_commands(traffic, client, folder)
    finally:
        server.stop()
    forbid_what_is_stored(traffic)
    traffic.logged = server.stdout_path.read_text() + server.stderr_path.read_text() + commands
    return traffic


def assert_the_logs_are_those_of(traffic: Traffic) -> None:
    """Without this, a search of an empty file would find nothing too."""
    told = [request_id for request_id in traffic.request_ids if request_id in traffic.logged]
    assert len(told) > 60
    for expected in ("TokenIssued", "TokenRefused", "wrong_secret", "repeated_parameter", "query_parameter"):
        assert expected in traffic.logged
    assert "Refused with 400: " in traffic.logged
    assert "was changed. Tokens that it has keep what they say" in traffic.logged
    assert "Current configuration:" in traffic.logged
    assert "loglevel: debug" in traffic.logged
    assert traffic.server.settings.log_level == "debug"


# One test for each format, since each costs a server and all those commands wherever it runs.
def test_nothing_that_must_not_be_logged_is_logged(traffic: Traffic) -> None:
    assert_the_logs_are_those_of(traffic)
    assert len(traffic.forbidden) > 50
    assert all(len(secret) >= 12 for secret in traffic.forbidden.values())
    found = {name for name, secret in traffic.forbidden.items() if secret in traffic.logged}
    assert found == set()


@pytest.mark.parametrize(
    "encode",
    [str, lambda secret: secret.encode().hex(), lambda secret: base64.b64encode(secret.encode()).decode()],
    ids=["as it is", "hex", "base64"],
)
def test_a_secret_is_looked_for_in_its_usual_encodings(encode: Callable[[str], str]) -> None:
    traffic = Traffic(RunningServer.__new__(RunningServer))
    traffic.forbid("secret", PASTED)
    assert any(secret in f"a line with {encode(PASTED)} in it" for secret in traffic.forbidden.values())


def test_settings_that_are_wrong_stop_the_start_without_showing_a_secret(tmp_path: Path) -> None:
    pepper = "short-pepper-never-shown"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TOKENHOUSE_")},
        "TOKENHOUSE_CONFIG": "testing",
        "TOKENHOUSE_ISSUER": "https://tokens.example.com",
        "TOKENHOUSE_SECRET_PEPPERS": f"p1:{pepper}",
        "TOKENHOUSE_DATABASE_URL": "mysql://user:password-never-shown@host/name",
        "TOKENHOUSE_KEYRING": str(tmp_path / "keyring.toml"),
        "TOKENHOUSE_LOG_LEVEL": "debug",
    }
    done = subprocess.run(
        [sys.executable, "-m", "flask", "clients", "list"],
        env=environment,
        cwd=PROJECT_FOLDER,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    said = (done.stdout + done.stderr).decode()
    assert "TOKENHOUSE_SECRET_PEPPERS" in said
    assert "TOKENHOUSE_DATABASE_URL" in said
    assert "never-shown" not in said
