"""Secrets rotate with an overlap while tokens are fetched without a pause; what is known of their use is true."""

import os
import random
import signal
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
import requests
from requests.auth import HTTPBasicAuth
from support.server import RunningServer, running_server, wait_until

CALLERS = 4
ROTATIONS = 4
OVERLAP_SECONDS = 12
TAKES_SECONDS = 2
"""A caller takes the new secret after so long at most, from when the command, which takes a while, has told it."""
PAUSE_SECONDS = 0.01
FLUSH_SECONDS = 5


class FromAddress(requests.adapters.HTTPAdapter):
    """Calls from an address of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, source_address=(self._address, 0), **options)


class Callers:
    """Each takes a new secret at a random moment within the overlap, as deployments do."""

    def __init__(self, server: RunningServer, client_id: str, secret: str) -> None:
        self.server = server
        self.client_id = client_id
        self.secrets = [secret]
        self.failures: list[str] = []
        self.broken_connections = 0
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)

    def _call(self, number: int) -> None:
        dice = random.Random(number)
        secret, takes_at = self.secrets[0], 0.0
        session = requests.Session()
        session.mount("http://", FromAddress(f"127.0.0.{10 + number}"))
        while not self._done.wait(PAUSE_SECONDS):
            if secret != self.secrets[-1]:
                takes_at = takes_at or time.monotonic() + dice.uniform(0, TAKES_SECONDS)
                if time.monotonic() >= takes_at:
                    secret, takes_at = self.secrets[-1], 0.0
            try:
                answer = session.post(
                    self.server.token_url,
                    data={"grant_type": "client_credentials"},
                    auth=HTTPBasicAuth(self.client_id, secret),
                    timeout=10,
                )
            except requests.ConnectionError:
                # Whoever was being served by a worker that is killed asks again.
                self.broken_connections += 1
                continue
            if answer.status_code != requests.codes.ok:
                self.failures.append(f"{answer.status_code} {answer.text}")
        session.close()


def uses_in_the_log(server: RunningServer) -> dict[str, dict[str, list[datetime]]]:
    """When each secret was used from each address, by the audit log."""
    found: dict[str, dict[str, list[datetime]]] = defaultdict(lambda: defaultdict(list))
    for event in server.events():
        if event["event"] == "TokenIssued":
            found[event["secret_id"]][event["source_address"]].append(datetime.fromisoformat(event["time"]))
    return found


def minute(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:00Z")


@pytest.mark.parametrize("what", ["in peace", "a worker is killed"])
def test_rotations_cost_nobody_a_token_and_uses_are_known(tmp_path: Path, database_url: str, what: str) -> None:
    is_killed = what != "in peace"
    killed_at: datetime | None = None
    with running_server(tmp_path, "--workers", "3", TOKENHOUSE_DATABASE_URL=database_url) as server:
        client = server.create_client()
        with Callers(server, client.client_id, client.secret) as callers:
            for rotation in range(ROTATIONS):
                overlap = f"{OVERLAP_SECONDS}s"
                made = server.flask_json("clients", "rotate-secret", client.client_id, "--overlap", overlap)
                callers.secrets.append(made["client_secret"])
                time.sleep(TAKES_SECONDS + 0.5)
                if is_killed and rotation == ROTATIONS // 2:
                    victim = min(server.workers())
                    killed_at = datetime.now(UTC)
                    os.kill(victim, signal.SIGKILL)
                    wait_until(lambda victim=victim: len(server.workers() - {victim}) == 3)
        assert callers.failures == []
        assert callers.broken_connections == 0 or is_killed
        # Later than the last flush of each worker, and by those that stop.
        server.process.terminate()
        server.process.wait(20)
        known = {one["id"]: one for one in server.flask_json("clients", "secrets", client.client_id)}
        used = uses_in_the_log(server)
    assert len(used) == ROTATIONS + 1
    assert known.keys() == used.keys()
    lost_from = killed_at - timedelta(seconds=FLUSH_SECONDS + 1) if killed_at else None
    for secret_id, by_address in used.items():
        told = {one["source_address"]: one for one in known[secret_id]["used_from"]}
        for address, times in by_address.items():
            may_be = allowed(times, lost_from, killed_at)
            assert told.get(address, {}).get("last_used_at") in may_be, (secret_id, address)
        last = max(time for times in by_address.values() for time in times)
        every = [time for times in by_address.values() for time in times]
        assert known[secret_id]["last_used_at"] in allowed(every, lost_from, killed_at)
        assert lost_from or known[secret_id]["last_used_at"] in minutes(last)


def minutes(time: datetime) -> set[str | None]:
    """Of a use: it is noted some moments before its line is written, and maybe in the minute before."""
    return {minute(time), minute(time - timedelta(seconds=2))}


def allowed(times: list[datetime], lost_from: datetime | None, killed_at: datetime | None) -> set[str | None]:
    """The minute of the last use; where a worker was killed, without those that it had not told yet."""
    exact = minutes(max(times))
    if lost_from is None or killed_at is None:
        return exact
    kept = [time for time in times if not lost_from <= time <= killed_at]
    # Of those in between some may have been told: by other workers, or in the last moment.
    perhaps = [minute for time in times if not kept or time > max(kept) for minute in minutes(time)]
    return exact.union(perhaps, minutes(max(kept)) if kept else {None})
