"""Two servers with one store: an assertion that is played again to both of them at once gets one token."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from support.assertions import ISSUER, claims_of, form, signer
from support.postgres import new_database
from support.redis import running_redis
from support.server import RunningServer, running_server, wait_until

REPLAYS = 200
SIGNER = signer("ES256")


@contextlib.contextmanager
def two_servers(folder: Path, database_url: str, **variables: str) -> Iterator[tuple[RunningServer, RunningServer]]:
    """Two machines with one database and one ring; a client ``keyed``."""
    variables = {
        "TOKENHOUSE_DATABASE_URL": database_url,
        "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}",
        **variables,
    }
    with running_server(folder / "one", **variables) as one:
        register(one)
        (folder / "two").mkdir()
        two = RunningServer(folder / "two", TOKENHOUSE_KEYRING=str(one.settings.keyring), **variables)
        two.start()
        try:
            yield one, two
        finally:
            two.stop()


def register(server: RunningServer) -> None:
    server.create_signing_client("keyed", SIGNER)


def ask(server: RunningServer, assertion: str) -> requests.Response:
    return requests.post(f"{server.url}/oauth/token", data=form(assertion), timeout=30)


def new_assertion(**claims: Any) -> str:
    return SIGNER.sign(claims_of("keyed", ISSUER, **claims))


@pytest.mark.parametrize("store", ["database", "redis"])
def test_of_200_replays_at_once_one_gets_a_token(tmp_path: Path, request: pytest.FixtureRequest, store: str) -> None:
    with contextlib.ExitStack() as stack:
        variables = {}
        if store == "redis":
            variables["TOKENHOUSE_REDIS_URL"] = stack.enter_context(running_redis()).url
        database = new_database(request.getfixturevalue("postgres"))
        servers = stack.enter_context(two_servers(tmp_path, database, **variables))
        assertion = new_assertion()
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda number: ask(servers[number % 2], assertion), range(REPLAYS)))
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(401)) == (1, REPLAYS - 1)
        reasons = {
            event["reason"] for server in servers for event in server.events() if event["event"] == "TokenRefused"
        }
        assert reasons == {"assertion_replayed"}
        assert ask(servers[0], new_assertion()).status_code == 200


def test_a_redis_that_restarts_empty_and_one_that_is_away(tmp_path: Path) -> None:
    with running_redis() as redis, running_server(tmp_path, TOKENHOUSE_REDIS_URL=redis.url) as server:
        register(server)
        secret = server.create_client()
        first = new_assertion()
        assert ask(server, first).status_code == 200, "the first second of a new Redis refuses nobody"

        redis.stop()
        away = ask(server, new_assertion())
        assert (away.status_code, away.json()["error"]) == (503, "server_error")
        assert int(away.headers["Retry-After"]) >= 1
        assert server.event_of(away)["reason"] == "redis_ConnectionError"
        assert server.post_token(headers={"Authorization": secret.basic}).status_code == 200
        wait_until(lambda: checks(server) == (200, "degraded", "degraded"))
        assert ask(server, "x.y.z").status_code == 401, "what is wrong anyway is said"

        redis.start()
        wait_until(lambda: checks(server) == (200, "ok", "ok"))
        replayed = ask(server, first)
        assert replayed.status_code == 401
        assert server.event_of(replayed)["reason"] == "assertion_replayed"
        wait_until(lambda: ask(server, new_assertion()).status_code == 200)
        assert ask(server, first).status_code == 401


def checks(server: RunningServer) -> tuple[int, str, str]:
    answer = requests.get(f"{server.url}/readyz", timeout=10)
    return answer.status_code, answer.json()["status"], answer.json()["checks"]["redis"]
