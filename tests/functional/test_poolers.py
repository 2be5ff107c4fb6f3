"""A pooler between server and database: no startup options, no statements prepared by name, no row of another one."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from sqlalchemy.engine import make_url
from support.assertions import ISSUER, claims_of, form, signer
from support.pgbouncer import pgbouncer, program
from support.postgres import new_database
from support.server import FLASK, NewClient, RunningServer, run

REQUESTS = 150
KEYS = signer("ES256")


@pytest.fixture(params=["session", "transaction"])
def pooled(request: pytest.FixtureRequest, postgres: Any, tmp_path: Path) -> Iterator[RunningServer]:
    """A server that reaches its database through PgBouncer; so do the commands that prepare it."""
    if program() is None:
        pytest.skip("pgbouncer is not installed")
    name = make_url(new_database(postgres)).database
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        # What a database of somebody else may say.
        connection.execute(f"ALTER DATABASE {name} SET DateStyle = 'SQL, DMY'")
        connection.execute(f"ALTER DATABASE {name} SET TimeZone = 'Asia/Kathmandu'")
    with (
        tempfile.TemporaryDirectory(prefix="th-") as made,
        pgbouncer(_open(Path(made)) / "pooler", postgres, request.param) as port,
    ):
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/{name}"
        server = RunningServer(tmp_path, TOKENHOUSE_DATABASE_URL=url, TOKENHOUSE_ENCRYPTION_KEYS=f"k:{'e' * 40}")
        done = run(FLASK, "db", "upgrade", environment=server.environment)
        assert done.returncode == 0, done.stderr
        server.prepare()
        # In session mode each thread holds one of the pooler's twenty connections.
        server.start("--workers", "2" if request.param == "session" else "4")
        try:
            yield server
        finally:
            server.stop()


def _open(folder: Path) -> Path:
    folder.chmod(0o755)
    return folder


class Load:
    """Callers of all kinds, and what went wrong with them."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.clients = [server.create_client(f"Client {number}", scope=(f"s{number}",)) for number in range(6)]
        for number in range(3):
            server.create_signing_client(f"signs-{number}", KEYS)
        self.faults: list[str] = []

    def run(self, callers: int = 8) -> None:
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(self._ask, range(callers)))

    def _ask(self, caller: int) -> None:
        acts = [self.by_secret, self.by_assertion, self.by_a_wrong_secret]
        with requests.Session() as session:
            for number in range(caller, caller + REQUESTS):
                acts[number % len(acts)](session, number // len(acts))

    def by_secret(self, session: requests.Session, number: int) -> None:
        client = self.clients[number % len(self.clients)]
        answer = self._post(session, "token", client, grant_type="client_credentials")
        self._expect(answer, 200, scope=f"s{number % len(self.clients)}")
        token = answer.json().get("access_token", "")
        active = {"active": True, "client_id": client.client_id}
        self._expect(self._post(session, "introspect", client, token=token), 200, **active)
        if number % 3 == 0:
            self._expect(self._post(session, "revoke", client, token=token), 200)
            self._expect(self._post(session, "introspect", client, token=token), 200, active=False)

    def by_assertion(self, session: requests.Session, number: int) -> None:
        assertion = KEYS.sign(claims_of(f"signs-{number % 3}", ISSUER))
        for status in (200, 401):
            self._expect(session.post(self.server.token_url, form(assertion), timeout=30), status)

    def by_a_wrong_secret(self, session: requests.Session, number: int) -> None:
        wrong = NewClient(self.clients[number % len(self.clients)].client_id, "x" * 40)
        self._expect(self._post(session, "token", wrong, grant_type="client_credentials"), 401)

    def _post(self, session: requests.Session, endpoint: str, client: NewClient, **body: str) -> requests.Response:
        header = {"Authorization": client.basic}
        return session.post(f"{self.server.url}/oauth/{endpoint}", body, headers=header, timeout=30)

    def _expect(self, answer: requests.Response, status: int, **members: object) -> None:
        body = answer.json() if answer.content else {}
        if answer.status_code != status or any(body.get(name) != value for name, value in members.items()):
            self.faults.append(f"{answer.status_code} {answer.text[:200]}")


def test_a_mixed_load_meets_no_error_and_no_row_of_another_statement(pooled: RunningServer) -> None:
    load = Load(pooled)
    load.run()
    assert load.faults == []
    assert requests.get(f"{pooled.url}/readyz", timeout=10).json()["status"] == "ok"
    assert pooled.flask("clients", "list").returncode == 0
    assert pooled.flask("doctor").returncode == 0
