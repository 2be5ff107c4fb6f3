"""Commands and their database: ``flask db upgrade``, and one line for each thing that can be wrong."""

import json
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from conftest import SettableClock
from functional.commands import refusal
from sqlalchemy.engine import make_url
from support import postgres
from support.keys import add_key
from support.server import Installation, RunningServer
from unit.harness import open_harness

from app.errors import StartError


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "a"],
        ["create", "A"],
        ["update", "a", "--name", "b"],
        ["disable", "a"],
        ["delete", "a", "--yes"],
    ],
)
def test_a_database_that_was_not_migrated_is_one_line(
    tmp_path: Path, clock: SettableClock, arguments: list[str]
) -> None:
    with open_harness(tmp_path, clock, migrated=False) as harness:
        assert refusal(harness.run("clients", *arguments)) == (
            "the database cannot be used (OperationalError: unable to open database file): "
            "is TOKENHOUSE_DATABASE_URL right, has `flask db upgrade` run?"
        )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:hidden-password@127.0.0.1:1/nowhere",
        "postgresql+psycopg://user:hidden-password@/nowhere?host=/nowhere",
        "sqlite:////proc/nowhere/t.db",
        "sqlite:////dev/null/t.db",
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line(tmp_path: Path, clock: SettableClock, url: str) -> None:
    with open_harness(tmp_path, clock, migrated=False, with_key=False, database_url=url) as harness:
        for arguments in (["list"], ["create", "A", "--secret-out", str(tmp_path / "secret")]):
            told = refusal(harness.run("clients", *arguments))
            assert told.startswith("the database cannot be used (OperationalError: ")
            assert "is TOKENHOUSE_DATABASE_URL right, " in told
            assert "hidden-password" not in told
    assert not (tmp_path / "secret").exists()


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path, clock: SettableClock) -> None:
    (tmp_path / "tokenhouse.db").write_bytes(b"this is no database at all, whatever its name may say" * 100)
    with open_harness(tmp_path, clock, migrated=False, with_key=False) as harness:
        assert refusal(harness.run("clients", "list")).startswith(
            "the database cannot be used (DatabaseError: file is not a database): "
        )


def test_db_upgrade_works_and_then_the_clients_do(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    for _ in range(2):
        done = installation.flask("db", "upgrade")
        assert (done.returncode, done.stdout) == (0, "")
        assert "Traceback" not in done.stderr
    assert installation.flask_json("clients", "list") == []


@pytest.mark.parametrize(
    "url", ["sqlite:////proc/nowhere/t.db", "postgresql+psycopg://u:hidden-password@127.0.0.1:1/n"]
)
def test_db_upgrade_without_a_database_is_one_line(tmp_path: Path, url: str) -> None:
    done = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=url).flask("db", "upgrade")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "hidden-password" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_each_fault_of_a_database_has_a_message_of_its_own(tmp_path: Path, database_url: str) -> None:
    def told(url: str, *command: str) -> str:
        done = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=url).flask(*(command or ("clients", "list")))
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr.removeprefix("Error: ").rstrip("\n")

    name = make_url(database_url).database
    assert told(database_url) == (
        'the database cannot be used (UndefinedTable 42P01: relation "clients" does not exist): is it the right one, '
        "and has `flask db upgrade` run?"
    )
    nowhere = database_url.replace(str(name), "nowhere")
    assert 'FATAL:  database "nowhere" does not exist' in told(nowhere)
    assert "does not exist): is it the right one" in told(nowhere, "db", "upgrade")
    assert "Connection refused" in told("postgresql+psycopg://u:hidden-password@127.0.0.1:1/n")
    assert told(f"sqlite:///{tmp_path}/nothing.db") == (
        "the database cannot be used (OperationalError: unable to open database file): is TOKENHOUSE_DATABASE_URL "
        "right, has `flask db upgrade` run?"
    )
    with pytest.raises(StartError, match="must have user and password percent-encoded: @ is %40") as caught:
        Installation(tmp_path, TOKENHOUSE_DATABASE_URL="postgresql+psycopg://u:hidden@password@127.0.0.1/n")
    assert "hidden" not in str(caught.value)


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """Not pytest's: PostgreSQL is another user, whom another run of pytest would shut out."""
    with tempfile.TemporaryDirectory(prefix="tokenhouse-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def test_a_wrong_password_is_said_and_a_right_one_with_every_character_is_taken(
    tmp_path: Path, own_folder: Path
) -> None:
    server = postgres.start(own_folder / "postgres")
    postgres.ask_for_passwords(server, own_folder / "postgres", "locked")
    password = "p@ss/w:o%r+d?"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE locked LOGIN PASSWORD '{password}'")
        connection.execute("CREATE DATABASE locked OWNER locked")
    host = make_url(server.get_uri()).query["host"]

    def upgrade(given: str) -> subprocess.CompletedProcess[str]:
        url = f"postgresql+psycopg://locked:{quote(given, safe='')}@/locked?host={host}"
        return Installation(tmp_path, TOKENHOUSE_DATABASE_URL=url).flask("db", "upgrade")

    refused = upgrade("hidden-and-wrong")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "password authentication failed for user" in refused.stderr
    assert "is the password in TOKENHOUSE_DATABASE_URL right?" in refused.stderr
    assert "hidden" not in refused.stderr
    assert upgrade(password).returncode == 0
    postgres.stop(server)


def test_db_upgrade_makes_folder_and_file_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "t.db"
    done = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=f"sqlite:///{path}").flask("db", "upgrade")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


ENCODING = "the database has the encoding SQL_ASCII, and must have UTF8"


@pytest.fixture
def of_another_encoding(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database that is not in UTF-8."""
    server: Any = request.getfixturevalue("postgres")
    url = make_url(postgres.new_database(server))
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {url.database}")
        connection.execute(f"CREATE DATABASE {url.database} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize("command", [("db", "upgrade"), ("doctor",), ("clients", "list")])
def test_a_database_of_another_encoding_is_one_line(
    tmp_path: Path, of_another_encoding: str, command: tuple[str, ...]
) -> None:
    installation = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=of_another_encoding)
    done = installation.flask(*command)
    assert done.returncode == 1
    assert ENCODING in (done.stdout if command == ("doctor",) else done.stderr)
    assert "Traceback" not in done.stderr


def test_a_server_refuses_to_start_on_a_database_of_another_encoding(tmp_path: Path, of_another_encoding: str) -> None:
    server = RunningServer(tmp_path, TOKENHOUSE_DATABASE_URL=of_another_encoding)
    now = server.services.clock()
    add_key(server.services.keys.manager.backend, published_at=now, signs_from=now)
    with pytest.raises(AssertionError, match="gunicorn ended") as caught:
        server.start("--workers", "1")
    assert f"tokenhouse: database: it cannot be used: WrongEncoding: {ENCODING}" in str(caught.value)


@pytest.mark.parametrize("keyring", ["keyring.toml", "database"])
def test_commands_that_prepare_a_database_at_the_same_time_wait_for_each_other(
    tmp_path: Path, database_url: str, keyring: str
) -> None:
    installation = Installation(
        tmp_path,
        TOKENHOUSE_DATABASE_URL=database_url,
        TOKENHOUSE_ENCRYPTION_KEYS=f"k:{'e' * 40}",
        TOKENHOUSE_KEYRING=keyring if keyring == "database" else str(tmp_path / keyring),
    )
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: installation.flask("db", "upgrade"), range(4)))
        assert [(one.returncode, "Error" in one.stderr) for one in done] == [(0, False)] * 4, done
        # One of them does it all, and the others find nothing to do.
        assert sorted(one.stderr.count("Running upgrade") for one in done)[:3] == [0, 0, 0]
        made = list(pool.map(lambda _: installation.flask("keys", "generate", "--if-none", "--json"), range(4)))
    assert [one.returncode for one in made] == [0] * 4, made
    (first,) = [one for one in map(json.loads, (one.stdout for one in made)) if one]
    assert first["state"] == "signing"
    assert {one.stderr for one in made if one.stdout == "null\n"} == {"There is a key already: nothing was changed.\n"}
    assert sorted(key["state"] for key in installation.flask_json("keys", "list")) == ["announced", "signing"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_where_the_database_answers_nobody_is_sent_to_look_at_its_url(tmp_path: Path, database_url: str) -> None:
    installation = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=database_url)
    assert installation.flask("db", "upgrade").returncode == 0
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("ALTER TABLE clients DROP COLUMN client_name CASCADE")
        connection.execute("ALTER TABLE clients ADD COLUMN client_name int NOT NULL DEFAULT 1")
    done = installation.flask("clients", "create", "A")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the database cannot be used (DatatypeMismatch 42804: ")
    assert "TOKENHOUSE_DATABASE_URL" not in done.stderr
