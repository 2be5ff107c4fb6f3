"""What examples call: a real Tokenhouse behind a front that counts and disturbs, and an API that verifies tokens."""

import contextlib
import http.client
import http.server
import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from support.assertions import Signer, signer
from support.server import NewClient, RunningServer, free_port, running_server

from app.clients.fields import ClientFields
from app.config.values import PROJECT_FOLDER

EXAMPLES = PROJECT_FOLDER / "examples"
BROKEN = 0
"""A status that stands for a connection that ends before an answer."""
LOST = -1
"""A status that stands for a request that is served and whose answer does not come."""
UNAVAILABLE = {"error": "server_error", "error_description": "The server cannot handle the request right now."}
TOO_MANY = {"error": "temporarily_unavailable", "error_description": "Too many requests."}
PASSED_ON = ("authorization", "content-type", "accept")


@dataclass
class EndpointResponse:
    """What the front has answered so far, and what it is to answer next in place of the truth."""

    token_statuses: list[int] = field(default_factory=list)
    api_statuses: list[int] = field(default_factory=list)
    token_faults: deque[tuple[int, dict[str, str], dict[str, Any]]] = field(default_factory=deque)
    api_faults: deque[int] = field(default_factory=deque)
    unverifiable: list[str] = field(default_factory=list)
    refuse: set[str] = field(default_factory=set)
    """Tokens that the API takes no more."""
    tokens: set[str] = field(default_factory=set)
    """What was issued, and what came to the API as a token."""
    put: list[str] = field(default_factory=list)
    """Items that came to the API, as often as they did."""
    are_keys_away: bool = False
    """Whether the issuer's documents are not to be had."""
    api_pause: float = 0
    """Seconds that a call of the API takes."""


class Front(http.server.ThreadingHTTPServer):
    """Tokenhouse and the API, on one port."""

    daemon_threads = True
    request_queue_size = 512
    backend: RunningServer
    answered: EndpointResponse
    lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def verify(self, token: str) -> None:
        if not hasattr(self, "keys"):
            self.keys = {key["kid"]: jwt.PyJWK(key) for key in self.backend.jwks()["keys"]}
        issuer = self.backend.settings.issuer
        jwt.decode(token, self.keys[jwt.get_unverified_header(token)["kid"]], algorithms=["RS256"], issuer=issuer,
                   audience=issuer)  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Front

    def do_GET(self) -> None:
        if self.path.startswith("/api"):
            self._call_api()
        elif self.server.answered.are_keys_away:
            self._answer(503, {}, b"")
        else:
            self._answer(*self._ask(b""))

    def do_PUT(self) -> None:
        self._call_api(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            fault = self.server.answered.token_faults.popleft() if self.server.answered.token_faults else None
        if fault:
            status, fields, told = fault
            content = json.dumps(told).encode()
            if status == LOST:
                self._ask(body)
        else:
            status, fields, content = self._ask(body)
        with self.server.lock:
            self.server.answered.token_statuses.append(status)
            if status == 200:
                self.server.answered.tokens.add(json.loads(content)["access_token"])
        if status in {BROKEN, LOST}:
            self.close_connection = True
        else:
            self._answer(status, fields, content)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What Tokenhouse answers."""
        port = urlsplit(self.server.backend.url).port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        fields = {name: value for name, value in self.headers.items() if name.lower() in PASSED_ON}
        connection.request(self.command, self.path, body or None, fields)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        kept = {name: value for name, value in answer.getheaders() if name.lower() in {"content-type", "retry-after"}}
        return answer.status, kept, content

    def _call_api(self, item: bytes = b"") -> None:
        answered, token = self.server.answered, self.headers.get("Authorization", "").removeprefix("Bearer ")
        time.sleep(answered.api_pause)
        with self.server.lock:
            answered.tokens.add(token)
            fault = answered.api_faults.popleft() if answered.api_faults else None
            revoked = token in answered.refuse
        if fault or revoked:
            status = fault or 401
        else:
            try:
                self.server.verify(token)
                status = 200
            except jwt.PyJWTError as error:
                answered.unverifiable.append(repr(error))
                status = 401
        with self.server.lock:
            # Before the answer: who has it may look at once.
            answered.api_statuses.append(status)
            if item and status == 200:
                answered.put.append(json.loads(item)["id"])
            if fault == 401:
                # As one that was revoked.
                answered.refuse.add(token)
        told = {"status": status, "things": ["ink", "paper"]}
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(told).encode())

    def _answer(self, status: int, fields: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class Stage:
    """What a test of an example has in hand."""

    server: RunningServer
    front: Front
    folder: Path
    keyed: bool = False
    """Whether clients have a private key instead of a secret."""

    @property
    def answered(self) -> EndpointResponse:
        return self.front.answered

    def client(self, **fields: Any) -> NewClient:
        if self.keyed:
            one = signer()
            fields |= {"token_endpoint_auth_method": "private_key_jwt", "auth_fields": _registered(one)}
            with self.server.context():
                to_entry = ClientFields(client_name="Keyed", scope=("things:read",), **fields)
                row, _ = self.server.services.clients.repository.register(to_entry, with_secret=False)
                return NewClient(row.client_id, _pem(one))
        return self.server.create_client(scope=("things:read",), **fields)

    def rotate(self, client: NewClient) -> None:
        """Give ``client`` another secret, or key, and end the one that it has."""
        if self.keyed:
            one = signer()
            with self.server.context():
                change = {"auth_fields": _registered(one)}
                self.server.services.clients.repository.update(client.client_id, lambda _: change)
            new = _pem(one)
        else:
            with self.server.context():
                made, _ = self.server.services.clients.secrets.rotate(client.client_id, overlap=timedelta())
            new = made.secret
        self._secret_of(client).write_text(new)

    def _secret_of(self, client: NewClient) -> Path:
        return self.folder / f"{client.client_id}.secret"

    def environment(self, client: NewClient, **more: str) -> dict[str, str]:
        """What the READMEs say to set, and nothing of the one who runs the tests but where programs lie."""
        secret = self._secret_of(client)
        if not secret.exists():
            secret.write_text(f"{client.secret}\n")
        kept = ("PATH", "HOME", "LANG", "JAVA_HOME", "CARGO_HOME", "RUSTUP_HOME", "GOPATH", "GOCACHE")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "TOKEN_URL": f"{self.front.url}/oauth/token",
            "ISSUER": self.front.url,
            "API_URL": f"{self.front.url}/api/things",
            "CLIENT_ID": client.client_id,
            "CLIENT_KEY_FILE" if self.keyed else "CLIENT_SECRET_FILE": str(secret),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "NO_PROXY": "127.0.0.1",
            **more,
        }

    def run(self, command: list[str], client: NewClient, **more: str) -> subprocess.CompletedProcess[str]:
        """Run an example; what it says never holds the secret or a token."""
        done = subprocess.run(
            command, env=self.environment(client, **more), capture_output=True, text=True, check=False, timeout=120,
            cwd=EXAMPLES,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert client.secret not in said
        return done


def _registered(one: Signer) -> dict[str, Any]:
    return {"jwks": {"keys": [one.jwk | {"kid": one.kid}]}, "assertion_audience": "issuer"}


def _pem(one: Signer) -> str:
    """As `flask clients create --generate-key` writes it."""
    return str(one.key.as_pem(private=True).decode())


@contextlib.contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """Begin with a served Tokenhouse whose issuer is the front."""
    port = free_port()
    with running_server(folder, "--workers", "1", TOKENHOUSE_ISSUER=f"http://127.0.0.1:{port}") as server:
        front = Front(("127.0.0.1", port), Handler)
        front.backend, front.answered = server, EndpointResponse()
        thread = threading.Thread(target=front.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Stage(server, front, folder)
        finally:
            front.shutdown()
            front.server_close()
            thread.join()
