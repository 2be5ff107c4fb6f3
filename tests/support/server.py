"""A real Tokenhouse for tests: gunicorn as it is deployed, on a free port, with a database and keys of its own."""

import base64
import contextlib
import http.client
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jwt
import requests
from flask import Flask
from flask_migrate import upgrade
from support.assertions import Signer
from support.keys import add_key
from support.prepared_command import PreparedCommand

from app import create_app
from app.clients.fields import ClientFields
from app.config.loader import load_settings
from app.config.settings import Settings
from app.config.values import KEYRING_IN_DATABASE, PROJECT_FOLDER
from app.database.models import db
from app.services import Services

START_SECONDS = 30
COMMAND_SECONDS = 60
_PREPARED = PreparedCommand()
FLASK = Path(sys.executable).with_name("flask")
"""The command that people and scripts run."""
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def newest_migration() -> str:
    """The revision that the code needs."""
    return max(path.name[:4] for path in (PROJECT_FOLDER / "migrations" / "versions").glob("[0-9]*.py"))


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what happens in another process."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def run(
    *command: str | Path, environment: dict[str, str], stdin: bytes | None = None, cwd: Path = PROJECT_FOLDER
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder. Does not check the status."""
    done = subprocess.run(
        command, env=environment, cwd=cwd, input=stdin, capture_output=True, check=False, timeout=COMMAND_SECONDS
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def environment_for(folder: Path, **settings: str) -> dict[str, str]:
    """What a production-like server needs in its environment, without anything of the one who runs the tests."""
    ours = ("TOKENHOUSE_", "OTEL_", "FLASK_", "GUNICORN_", "WEB_CONCURRENCY", "HOST", "PORT")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    defaults = {
        "TOKENHOUSE_CONFIG": "testing",
        "TOKENHOUSE_ISSUER": "https://tokens.example.com",
        "TOKENHOUSE_DATABASE_URL": f"sqlite:///{folder}/tokenhouse.db",
        "TOKENHOUSE_KEYRING": str(folder / "keyring.toml"),
        # One machine runs many of them.
        "TOKENHOUSE_METRICS_ADDRESS": "",
        "TOKENHOUSE_SECRET_PEPPERS": f"p1:{secrets.token_urlsafe(32)}",
    }
    return {**inherited, **defaults, **settings}


def migrate() -> None:
    """Migrate the database of the current application. A new file is a copy of one that was migrated before."""
    url = db.engine.url
    if url.drivername.startswith("sqlite") and not Path(str(url.database)).exists():
        content = _migrated_file()
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(str(url.database), os.O_CREAT | os.O_EXCL, 0o600))
        Path(str(url.database)).write_bytes(content)
    else:
        upgrade()


@cache
def _migrated_file() -> bytes:
    """Return the content of a migrated SQLite file: migrating takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        installation = Installation(Path(folder))
        with installation.context():
            upgrade()
        return (Path(folder) / "tokenhouse.db").read_bytes()


@dataclass(frozen=True)
class NewClient:
    """A client made for a test, with its secret in clear."""

    client_id: str
    secret: str

    @property
    def basic(self) -> str:
        """Its ``Authorization`` header, raw as curl sends it."""
        return basic(self.client_id, self.secret)


def basic(client_id: str, secret: str) -> str:
    """``Authorization`` header with these credentials as they are."""
    return "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()


class _Received(io.BytesIO):
    """Stands where ``http.client`` expects a socket; stays open, since the next answer is read from it too."""

    def makefile(self, _mode: str) -> "_Received":
        """Return itself."""
        return self

    def close(self) -> None:
        """Stay open."""


@dataclass(frozen=True)
class Answer:
    """What came back, to the byte. Header fields in their order, with repeats."""

    status_code: int
    headers: http.client.HTTPMessage
    content: bytes

    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.content)


def read_answers(received: bytes, method: str = "POST") -> list[Answer]:
    """Take apart what a server sent on one connection to requests of ``method``."""
    stream = _Received(received)
    answers = []
    while stream.tell() < len(received):
        response = http.client.HTTPResponse(stream, method=method)  # type: ignore[arg-type]
        response.begin()
        answers.append(Answer(response.status, response.headers, response.read()))
    return answers


class Installation:
    """Settings, database and keys of one Tokenhouse; what ``flask`` works on, with or without a running server."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.environment = environment_for(folder, **settings)
        self.settings: Settings = load_settings(self.environment)

    @cached_property
    def app(self) -> Flask:
        """The application in this process: for making clients fast, not for what is tested."""
        return create_app(self.settings)

    @property
    def services(self) -> Services:
        """The parts of :attr:`app`."""
        found: Services = self.app.extensions["tokenhouse"]
        return found

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """The application's context; no connection to the database outlives it."""
        with self.app.app_context():
            try:
                yield
            finally:
                db.session.remove()
                db.engine.dispose()

    def prepare(self) -> None:
        """Migrate, and make a first key."""
        with self.context():
            migrate()
            if self.settings.keyring == KEYRING_IN_DATABASE:
                self.services.keys.manager.generate()
            else:
                now = self.services.clock()
                add_key(self.services.keys.manager.backend, published_at=now, signs_from=now)

    def create_client(self, name: str = "A service", *, client_id: str | None = None, **fields: Any) -> NewClient:
        """Register a client; ``secret``, ``secret_expires_after`` and the fields of ``ClientFields`` may be given."""
        options = {name: fields.pop(name) for name in ("secret", "secret_expires_after") if name in fields}
        with self.context():
            row, secret = self.services.clients.repository.register(
                ClientFields(client_name=name, **fields), client_id=client_id, **options
            )
            assert secret is not None
            return NewClient(row.client_id, secret.secret)

    def create_signing_client(self, client_id: str, *signers: Signer) -> None:
        """Register a client of ``private_key_jwt`` with the public keys of ``signers``."""
        keys = {"keys": [signer.jwk | {"kid": signer.kid} for signer in signers]}
        fields = ClientFields(
            client_name="Signs", token_endpoint_auth_method="private_key_jwt", auth_fields={"jwks": keys}
        )
        with self.context():
            self.services.clients.repository.register(fields, client_id=client_id, with_secret=False)

    def flask(
        self, *arguments: str, stdin: bytes | None = None, cwd: Path = PROJECT_FOLDER
    ) -> subprocess.CompletedProcess[str]:
        """Run ``flask …`` as a person or a script does. Does not check the status."""
        if not _PREPARED.can_run(self.environment):
            return run(FLASK, *arguments, environment=self.environment, stdin=stdin, cwd=cwd)
        return _PREPARED.run(list(map(str, arguments)), self.environment, stdin, cwd, COMMAND_SECONDS)

    def flask_ok(self, *arguments: str) -> None:
        """Run ``flask …``, which must work."""
        done = self.flask(*arguments)
        assert done.returncode == 0, done.stderr

    def flask_json(self, *arguments: str) -> Any:
        """Run ``flask … --json``, which must work, and parse what it prints."""
        done = self.flask(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class RunningServer(Installation):
    """An installation that is served."""

    port: int
    process: subprocess.Popen[bytes]
    prefix: tuple[str, ...] = ()
    """A command that starts gunicorn."""

    def start(self, *gunicorn_options: str, log_folder: Path | None = None, application: str = "wsgi:app") -> None:
        """Start gunicorn with the project's own configuration and wait until it answers."""
        self.port = int(self.environment.get("PORT") or free_port())
        self.environment |= {"HOST": "127.0.0.1", "PORT": str(self.port)}
        self.stdout_path = (log_folder or self.folder) / "stdout.log"
        self.stderr_path = (log_folder or self.folder) / "stderr.log"
        with self.stdout_path.open("ab") as stdout, self.stderr_path.open("ab") as stderr:
            gunicorn = [sys.executable, "-m", "gunicorn", "--config", "config/gunicorn.py", *gunicorn_options]
            self.process = subprocess.Popen(
                [*self.prefix, *gunicorn, application],
                env=self.environment,
                cwd=PROJECT_FOLDER,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End the server and whatever it started."""
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_url(self) -> str:
        """The token endpoint."""
        return f"{self.url}/oauth/token"

    def post_token(
        self,
        data: dict[str, str] | list[tuple[str, str]] | str | bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> requests.Response:
        """Send a token request; ``data`` defaults to the least that is needed. A string goes as it is, as a form."""
        body = {"grant_type": "client_credentials"} if data is None else data
        typed = {**(FORM if isinstance(body, str | bytes) else {}), **(headers or {})}
        return requests.post(self.token_url, data=body, headers=typed, timeout=10, **kwargs)

    def token_status(self, client: NewClient) -> int:
        """The status of a token request with the client's secret."""
        return self.post_token(headers={"Authorization": client.basic}).status_code

    def is_active(self, client: NewClient, token: str) -> bool:
        """What introspection tells ``client`` about ``token``."""
        headers = {"Authorization": client.basic}
        answer = requests.post(f"{self.url}/oauth/introspect", {"token": token}, headers=headers, timeout=10)
        assert answer.status_code == 200
        return bool(answer.json()["active"])

    def send(self, raw: bytes, method: str = "POST") -> list[Answer]:
        """Send bytes as they are on a connection of their own, say that no more will come, and read every answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=15) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        return read_answers(received, method)

    def send_form(self, body: bytes, *header_lines: bytes, target: bytes = b"/oauth/token") -> Answer:
        """Post ``body`` as a form with exactly these further header lines, which may repeat or hold any byte."""
        head = [
            b"POST %s HTTP/1.1" % target,
            b"Host: tokens.example.com",
            b"Connection: close",
            b"Content-Type: application/x-www-form-urlencoded",
            b"Content-Length: %d" % len(body),
            *header_lines,
        ]
        (answer,) = self.send(b"\r\n".join(head) + b"\r\n\r\n" + body)
        return answer

    def get_token(self, client: NewClient, **parameters: str) -> dict[str, Any]:
        """Fetch a token that must be granted; the whole answer."""
        body = {"grant_type": "client_credentials", **parameters}
        response = self.post_token(body, headers={"Authorization": client.basic})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def jwks(self) -> dict[str, Any]:
        """The published keys."""
        document: dict[str, Any] = requests.get(f"{self.url}/.well-known/jwks.json", timeout=10).json()
        return document

    def verify(self, access_token: str, audience: str | None = None) -> dict[str, Any]:
        """Verify a token as a strict API does, with the keys that the server publishes; its claims."""
        keys = {key["kid"]: jwt.PyJWK(key) for key in self.jwks()["keys"]}
        header = jwt.get_unverified_header(access_token)
        assert header["typ"] == "at+jwt"
        claims: dict[str, Any] = jwt.decode(
            access_token,
            keys[header["kid"]].key,
            algorithms=["RS256"],
            issuer=self.settings.issuer,
            audience=audience or self.settings.default_audience,
            leeway=60,
            options={"require": ["iss", "sub", "aud", "exp", "iat", "jti", "client_id"]},
        )
        return claims

    def events(self) -> list[dict[str, Any]]:
        """All lines of the audit log so far."""
        return [json.loads(line) for line in self.stdout_path.read_text().splitlines() if line.startswith("{")]

    def event_of(self, response: requests.Response | Answer) -> dict[str, Any]:
        """The audit line of one answer."""
        request_id = response.headers["X-Request-ID"]
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + 5
        # On a busy machine the answer may be here before another thread has written the line.
        while not found and time.monotonic() < deadline:
            found = [event for event in self.events() if event.get("request_id") == request_id]
        assert len(found) == 1, f"{len(found)} audit lines for {request_id}"
        return found[0]

    def workers(self) -> set[int]:
        """The process ids of gunicorn's workers."""
        return set(map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()))

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"gunicorn ended: {self.stderr_path.read_text()}"
            with contextlib.suppress(OSError):
                if requests.get(f"{self.url}/livez", timeout=1).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"gunicorn did not answer within {START_SECONDS} s: {self.stderr_path.read_text()}")


@contextlib.contextmanager
def running_server(folder: Path, *gunicorn_options: str, **settings: str) -> Iterator[RunningServer]:
    """Serve a fresh installation for as long as the block runs."""
    server = RunningServer(folder, **settings)
    server.prepare()
    server.start(*gunicorn_options)
    try:
        yield server
    finally:
        server.stop()
