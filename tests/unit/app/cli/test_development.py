"""``make run``: what the first start makes, what a later one keeps, and what it says."""

import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SettableClock
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st
from unit.checkout import make_checkout
from unit.harness import Harness, open_harness

from app.cli.development import greeting, prepare, write_environment_file
from app.config.loader import load_settings
from app.errors import StartError


@pytest.fixture
def development(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """A developer's machine before the first start."""
    options = {"config": "development", "issuer": "http://localhost:8080"}
    with open_harness(tmp_path / "deep" / "er", clock, migrated=False, with_key=False, **options) as made:
        yield made


def test_the_first_start_makes_database_and_key_and_the_next_keeps_them(
    development: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    with development.app.app_context():
        prepare(development.settings)
        assert capsys.readouterr().out == f"Made a signing key and its standby in {development.settings.keyring}.\n"
        assert stat.S_IMODE(development.folder.stat().st_mode) == 0o700
        ring = development.settings.keyring.read_bytes()
        prepare(development.settings)
        assert capsys.readouterr().out == ""
        assert development.settings.keyring.read_bytes() == ring
    assert development.run("clients", "list", "--json").stdout == "[]\n"


def test_the_first_start_makes_a_client_and_a_line_that_works(development: Harness) -> None:
    with development.app.app_context():
        prepare(development.settings)
        said = greeting(development.settings)
    (line,) = re.findall(r"^  (curl .*)$", said, re.MULTILINE)
    _, _, credentials, _, body, url = shlex.split(line)
    assert (body, url) == ("grant_type=client_credentials", "http://localhost:8080/oauth/token")
    client_id, _, secret = credentials.partition(":")
    assert client_id == "demo"
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    answer = development.app.test_client().post("/oauth/token", data=form).get_json()
    assert answer["scope"] == "read write"
    with development.app.app_context():
        again = greeting(development.settings)
    assert secret not in again
    assert "curl" not in again
    assert '.venv/bin/flask clients create "My service" --scope "read write"' in again


def test_a_demo_client_that_was_deleted_does_not_come_back(development: Harness) -> None:
    with development.app.app_context():
        prepare(development.settings)
        greeting(development.settings)
        development.store.delete("demo")
        assert "curl" not in greeting(development.settings)
        assert development.store.list_all() == []


def test_there_is_no_demo_client_outside_development(harness: Harness) -> None:
    with harness.app.app_context():
        assert "curl" not in greeting(harness.settings)
        assert harness.store.list_all() == []


def written(path: Path, **environment: str) -> dict[str, str | None]:
    write_environment_file(path, environment)
    return dotenv_values(path, interpolate=False)


def test_the_environment_file_is_private_and_holds_a_pepper(tmp_path: Path) -> None:
    values = written(tmp_path / ".env", TOKENHOUSE_CONFIG="development")
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    for name in ("TOKENHOUSE_SECRET_PEPPERS", "TOKENHOUSE_ENCRYPTION_KEYS"):
        assert re.fullmatch(r"dev1:[A-Za-z0-9_-]{43}", values.pop(name) or "")
    assert values == {"TOKENHOUSE_CONFIG": "development", "TOKENHOUSE_ISSUER": "http://localhost:8080"}


def test_a_pepper_is_made_once_and_the_rest_anew(tmp_path: Path) -> None:
    first = written(tmp_path / ".env", PORT="9000", TOKENHOUSE_LOG_LEVEL="debug")
    second = written(tmp_path / ".env", HOST="0.0.0.0", PORT="7000")  # noqa: S104
    assert first["TOKENHOUSE_SECRET_PEPPERS"] == second["TOKENHOUSE_SECRET_PEPPERS"]
    assert (first["TOKENHOUSE_ISSUER"], second["TOKENHOUSE_ISSUER"]) == (
        "http://localhost:9000",
        "http://localhost:7000",
    )
    assert "TOKENHOUSE_LOG_LEVEL" not in second


@pytest.mark.parametrize(
    ("port", "address"),
    [("8080", None), ("8081", "127.0.0.1:9465"), ("80", "127.0.0.1:1464"), ("65535", "127.0.0.1:65534")],
)
def test_the_port_moves_the_metrics_too(tmp_path: Path, port: str, address: str | None) -> None:
    assert written(tmp_path / ".env", PORT=port).get("TOKENHOUSE_METRICS_ADDRESS") == address
    given = written(tmp_path / ".env", PORT=port, TOKENHOUSE_METRICS_ADDRESS="127.0.0.1:1")
    assert given["TOKENHOUSE_METRICS_ADDRESS"] == "127.0.0.1:1"


def test_what_people_wrote_into_the_environment_file_is_kept(tmp_path: Path) -> None:
    own = "# Mine.\nTOKENHOUSE_ISSUER=http://localhost:1\nTOKENHOUSE_LOG_LEVEL=debug # loud\n"
    (tmp_path / ".env").write_text(own)
    for _ in range(3):
        values = written(tmp_path / ".env", PORT="9000")
    assert (tmp_path / ".env").read_text().startswith(own)
    assert (values["TOKENHOUSE_ISSUER"], values["TOKENHOUSE_LOG_LEVEL"]) == ("http://localhost:1", "debug")
    assert (tmp_path / ".env").read_text().count("TOKENHOUSE_SECRET_PEPPERS") == 1


def test_a_start_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    written(tmp_path / ".env", PORT="9000")
    before = (tmp_path / ".env").stat()
    written(tmp_path / ".env", PORT="9000")
    assert (tmp_path / ".env").stat().st_ino == before.st_ino


def test_a_pepper_of_the_environment_is_taken_over(tmp_path: Path) -> None:
    pepper = "p1:" + "x" * 32
    assert written(tmp_path / ".env", TOKENHOUSE_SECRET_PEPPERS=pepper)["TOKENHOUSE_SECRET_PEPPERS"] == pepper


# python-dotenv reads a carriage return as a newline; no setting may hold either.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=30))
def test_whatever_value_was_given_reads_the_same_again(tmp_path: Path, value: str) -> None:
    (tmp_path / ".env").unlink(missing_ok=True)
    assert written(tmp_path / ".env", TOKENHOUSE_KEYRING_PASSPHRASE=value)["TOKENHOUSE_KEYRING_PASSPHRASE"] == value


def test_what_was_written_are_settings_that_start(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    written(tmp_path / ".env", TOKENHOUSE_CONFIG="development", HOST="::1", PORT="9000")
    loaded = load_settings({}, folder=tmp_path)
    assert (loaded.config, loaded.issuer) == ("development", "http://[::1]:9000")
    assert load_settings({"TOKENHOUSE_CONFIG": "development"}, folder=tmp_path) == loaded


def test_port_80_is_not_written_into_the_issuer(tmp_path: Path) -> None:
    assert written(tmp_path / ".env", PORT="80")["TOKENHOUSE_ISSUER"] == "http://localhost"


@pytest.mark.parametrize(("host", "port"), [("192.168.5.5", ""), ("", "abc"), ("", "65536"), ("a.example", "")])
def test_an_address_that_cannot_be_an_issuer_is_told_and_nothing_is_written(
    tmp_path: Path, host: str, port: str
) -> None:
    with pytest.raises(StartError, match=r"^HOST and PORT make http://.* the issuer, which cannot be: "):
        write_environment_file(tmp_path / ".env", {"HOST": host, "PORT": port})
    assert not (tmp_path / ".env").exists()
