"""The key ring changes under a server with two workers: from a file and from the database, well and badly."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from flask_migrate import upgrade
from sqlalchemy import text
from support.keys import generate_long_ago
from support.server import NewClient, RunningServer, wait_until

from app.database.engine import begin_writing
from app.database.models import db
from app.keyring.model import Ring

NOTICED_SECONDS = 2
BUSY_SECONDS = 5
PATIENCE_SECONDS = 20
WORKERS = 2


class Serving:
    """A server, a client, and the ring that it began with."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        with server.context():
            upgrade()
            self.ring: Ring = generate_long_ago(server.services.keys.manager)
        self.first, self.standby = (key.kid for key in self.ring.keys)
        server.start("--workers", str(WORKERS))
        self.client: NewClient = server.create_client()

    def token_kid(self) -> str:
        """Fetch a token, verify it with the keys that are published right after, and tell which key signed it."""
        token = self.server.get_token(self.client)["access_token"]
        self.server.verify(token)
        kid: str = jwt.get_unverified_header(token)["kid"]
        return kid

    def kids(self, requests_: int = 12) -> set[str]:
        """So many that each worker has answered, all but certainly."""
        try:
            return {self.token_kid() for _ in range(requests_)}
        except KeyError:
            # One worker has noticed a change, and publishes a key no more that another still signs with.
            return set()

    def loaded(self) -> list[dict[str, Any]]:
        return [event for event in self.server.events() if event.get("event") == "KeyRingLoaded"]

    def states(self) -> list[dict[str, Any]]:
        return [event for event in self.server.events() if event.get("event") == "KeyStateChanged"]

    def ready(self) -> tuple[int, str]:
        answer = requests.get(f"{self.server.url}/readyz", timeout=10)
        return answer.status_code, answer.json()["status"]

    @property
    def ring_file(self) -> Path:
        return self.server.folder / "keyring.toml"

    def break_ring(self) -> Callable[[], None]:
        """Break the ring for everybody; what mends it."""
        if self.server.settings.keyring == "database":
            self._execute("UPDATE signing_keys SET encryption_key_id = 'gone'")
            self._execute("UPDATE key_ring SET version = version + 1")
            return lambda: self._execute("UPDATE signing_keys SET encryption_key_id = 'e1'")
        content = self.ring_file.read_bytes()
        self.ring_file.write_bytes(content[: len(content) // 2])
        return lambda: self._replace_ring(content)

    def _replace_ring(self, content: bytes) -> None:
        self.ring_file.with_suffix(".new").write_bytes(content)
        self.ring_file.with_suffix(".new").replace(self.ring_file)

    def _execute(self, statement: str) -> None:
        with self.server.context():
            begin_writing(db.session)
            db.session.execute(text(statement))
            db.session.commit()


@pytest.fixture(params=["file", "database"])
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    more = {"TOKENHOUSE_KEYRING": "database", "TOKENHOUSE_ENCRYPTION_KEYS": f"e1:{'k' * 40}"}
    server = RunningServer(tmp_path, **(more if request.param == "database" else {}))
    made = Serving(server)
    yield made
    server.stop()


def test_every_worker_notices_a_change_within_two_seconds(serving: Serving) -> None:
    assert serving.kids() == {serving.first}
    done = serving.server.flask("keys", "revoke", serving.first, "--yes")
    asked = time.time()
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(serving.loaded()) == 1 and len(serving.states()) == 3)
    wait_until(lambda: serving.kids(24) == {serving.standby})
    time.sleep(2)
    # Once for all workers, and what has become of each key.
    (loaded,) = serving.loaded()
    assert loaded["signing"] == serving.standby
    (new,) = set(loaded["published"]) - {serving.standby}
    assert sorted((event["kid"], event["state"]) for event in serving.states()) == sorted(
        [(serving.first, "revoked"), (serving.standby, "signing"), (new, "announced")]
    )
    # Two looks, and what a busy machine takes for them.
    asked_at, noticed_at = datetime.fromtimestamp(asked, UTC), datetime.fromisoformat(serving.loaded()[-1]["time"])
    assert noticed_at - asked_at < timedelta(seconds=NOTICED_SECONDS + BUSY_SECONDS)


def test_a_broken_ring_costs_nobody_a_token_even_when_workers_die(serving: Serving) -> None:
    assert serving.kids() == {serving.first}
    mend = serving.break_ring()
    wait_until(lambda: all(serving.ready() == (200, "degraded") for _ in range(8)))
    assert serving.kids() == {serving.first}
    before = serving.server.workers()
    assert len(before) == WORKERS
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(serving.server.workers() - before) == WORKERS)
    assert serving.kids() == {serving.first}
    wait_until(lambda: all(serving.ready() == (200, "degraded") for _ in range(8)))
    # Workers that could not start are not exchanged for those that serve.
    serving.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP" in serving.server.stderr_path.read_text() or len(serving.server.workers()) == WORKERS)
    assert serving.kids() == {serving.first}
    mend()
    wait_until(lambda: all(serving.ready() == (200, "ok") for _ in range(8)))
    rejected = [event for event in serving.server.events() if event.get("event") == "KeyRingRejected"]
    # Once for all workers, and again for those that were born later than a minute.
    assert len({event["fault"] for event in rejected}) == 1
    assert len(rejected) <= WORKERS
    assert "PRIVATE" not in serving.server.stderr_path.read_text()


def test_a_reload_by_signal_takes_the_ring_and_the_settings_anew(serving: Serving) -> None:
    assert serving.kids() == {serving.first}
    before = serving.server.workers()
    assert serving.server.flask("keys", "rotate").returncode == 0
    serving.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & serving.server.workers())
    assert len(serving.server.jwks()["keys"]) == 3
    assert serving.token_kid() in {serving.first, serving.standby}


def test_tokens_are_counted_for_the_key_that_signed_them(serving: Serving) -> None:
    serving.kids(20)
    serving.server.process.terminate()
    serving.server.process.wait(timeout=20)
    counted = {key["kid"]: key["tokens_signed"] for key in serving.server.flask_json("keys", "list")}
    assert counted == {serving.first: 20, serving.standby: 0}


def test_a_worker_that_nobody_has_asked_yet_sees_a_change_too(serving: Serving) -> None:
    assert serving.server.flask("keys", "revoke", serving.first, "--yes").returncode == 0
    told = f"a changed key ring is in use: {serving.standby} signs"
    wait_until(lambda: serving.server.stderr_path.read_text().count(told) == WORKERS)
