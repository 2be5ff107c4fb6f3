"""Servers record themselves, and the doctor compares them: each difference is named, and no value is stored."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from sqlalchemy import text
from support.keys import add_key
from unit.harness import Harness, open_harness

from app.config.settings import SETTING_NAMES
from app.database.models import db
from app.operations import doctor_servers
from app.operations.doctor import examine, examine_start
from app.operations.doctor_servers import registry_of
from app.operations.findings import Severity
from app.operations.servers import OF_ONE_MACHINE, differences, fingerprints_of, is_running

PEPPER, OTHER_PEPPER = "p1:" + "abcdefghijkl" * 3, "p1:" + "mnopqrstuvwx" * 3
ERROR, WARNING, OK = Severity.ERROR, Severity.WARNING, Severity.OK


@pytest.fixture
def recorded(tmp_path: Path, clock: SettableClock, migrated_url: str) -> Iterator[Harness]:
    """A server that has recorded itself."""
    with open_harness(tmp_path, clock, database_url=migrated_url, secret_peppers=PEPPER, server_name="one") as harness:
        with harness.app.app_context():
            registry_of(harness.services).record()
        yield harness


def found(harness: Harness, *checks: str) -> list[tuple[Severity, str]]:
    with harness.app.app_context():
        return [(one.severity, one.what) for one in examine(harness.services) if one.check in checks]


def beside(recorded: Harness, folder: Path, **settings: str) -> "Iterator[Harness]":
    """Another installation on the same database and ring."""
    given = {
        "database_url": recorded.settings.database_url.get_secret_value(),
        "keyring": str(recorded.settings.keyring),
        "secret_peppers": PEPPER,
        "server_name": "two",
    }
    return open_harness(folder, recorded.clock, migrated=False, with_key=False, **{**given, **settings})  # type: ignore[return-value]


def test_a_server_records_who_it_is(recorded: Harness) -> None:
    (one,) = json.loads(recorded.run("servers", "--json").stdout)
    assert {name: one[name] for name in ("name", "version", "started", "seen", "state", "other settings")} == {
        "name": "one",
        "version": "0.1.0",
        "started": "2026-01-31T12:00:00Z",
        "seen": "2026-01-31T12:00:00Z",
        "state": "running",
        "other settings": [],
    }
    recorded.clock.advance(minutes=4)
    assert recorded.run("servers").stdout.splitlines()[1].split("\t")[6] == "silent"
    assert found(recorded, "servers") == []


def test_where_no_server_has_run_that_is_said(harness: Harness) -> None:
    done = harness.run("servers")
    assert (done.stdout, done.stderr) == (
        "name\thost\tport\tversion\tstarted\tseen\tstate\tring\tother settings\n",
        "No server has recorded itself within seven days.\n",
    )


def test_a_successor_replaces_its_row_and_old_rows_are_forgotten(recorded: Harness) -> None:
    with recorded.app.app_context():
        recorded.clock.advance(minutes=1)
        # The same server again, then one that was started later, then another machine's a week later.
        registry = registry_of(recorded.services)
        registry.record()
        registry.record()
        assert len(registry.servers()) == 1
        db.session.execute(text("UPDATE servers SET host = 'elsewhere'"))
        db.session.commit()
        recorded.clock.advance(days=7)
        registry_of(recorded.services).record()
        assert len(registry.servers()) == 2
        recorded.clock.advance(seconds=1)
        registry_of(recorded.services).record()
        assert len(registry.servers()) == 1


def test_servers_with_the_same_settings_agree(recorded: Harness, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with beside(recorded, tmp_path / "two", log_level="debug", metrics_address="127.0.0.1:1") as two:  # type: ignore[attr-defined]
        with two.app.app_context():
            registry_of(two.services).record()
        assert found(two, "servers") == [(OK, "2 running, with the same settings")]
        assert found(recorded, "servers") == [(OK, "2 running, with the same settings")]


@pytest.mark.parametrize(
    ("settings", "severity", "what"),
    [
        ({"issuer": "https://other.example.com"}, ERROR, "one: another TOKENHOUSE_ISSUER than here"),
        ({"jwks_max_age": "10m"}, WARNING, "one: another TOKENHOUSE_JWKS_MAX_AGE than here"),
        ({"access_token_lifetime": "5m"}, WARNING, "one: another TOKENHOUSE_ACCESS_TOKEN_LIFETIME than here"),
        ({"secret_peppers": OTHER_PEPPER}, ERROR, "one: another TOKENHOUSE_SECRET_PEPPERS than here"),
        (
            {"secret_peppers": f"p2:{'z0y1x2w3v4u5' * 3},{PEPPER}"},
            ERROR,
            "one: another TOKENHOUSE_SECRET_PEPPERS than here",
        ),
        ({"redis_url": "redis://:secret@127.0.0.1:1/0"}, WARNING, "one: another TOKENHOUSE_REDIS_URL than here"),
    ],
)
def test_a_setting_that_differs_is_named(
    recorded: Harness, tmp_path: Path, settings: dict[str, str], severity: Severity, what: str
) -> None:
    (tmp_path / "two").mkdir()
    with beside(recorded, tmp_path / "two", **settings) as two:  # type: ignore[attr-defined]
        assert (severity, what) in found(two, "servers")


def test_another_value_under_the_same_id_is_an_error_at_the_start_too(recorded: Harness, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    what = "'p1' of TOKENHOUSE_SECRET_PEPPERS has another value than this database was used with"
    with beside(recorded, tmp_path / "two", secret_peppers=OTHER_PEPPER) as two:  # type: ignore[attr-defined]
        assert (ERROR, what) in found(two, "keys")
        with two.app.app_context():
            registry_of(two.services).record()
            assert what in [one.what for one in examine_start(two.services)]
    # The first value stays.
    assert what not in [told for _, told in found(recorded, "keys")]


def test_another_ring_is_an_error(recorded: Harness, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    keyring = str(tmp_path / "two" / "keyring.toml")
    with beside(recorded, tmp_path / "two", keyring=keyring) as two:  # type: ignore[attr-defined]
        add_key(two.services.keys.manager.backend, published_at=two.clock(), signs_from=two.clock())
        assert (ERROR, "one: another key ring than here") in found(two, "servers")


def test_other_versions_are_a_warning(recorded: Harness) -> None:
    with recorded.app.app_context():
        db.session.execute(text("UPDATE servers SET version = '0.0.9', name = 'old', port = '1'"))
        db.session.commit()
        registry_of(recorded.services).record()
    assert (WARNING, "they run the versions 0.0.9, 0.1.0") in found(recorded, "servers")


def test_a_sqlite_file_of_several_machines_is_an_error(recorded: Harness) -> None:
    with recorded.app.app_context():
        db.session.execute(text("UPDATE servers SET host = 'a-machine'"))
        db.session.commit()
        registry_of(recorded.services).record()
        is_sqlite = db.engine.dialect.name == "sqlite"
    told = [what for severity, what in found(recorded, "servers") if severity is ERROR]
    assert bool(told) is is_sqlite
    assert all(what.startswith("2 machines use one SQLite file: a-machine, ") for what in told)


def test_no_value_can_be_read_from_the_database(recorded: Harness) -> None:
    with recorded.app.app_context():
        rows = [
            *db.session.execute(text("SELECT * FROM servers")),
            *db.session.execute(text("SELECT * FROM key_fingerprints")),
        ]
    assert "abcdefghijkl" not in str(rows)
    assert recorded.settings.issuer not in str(rows)


def test_every_setting_is_compared_or_may_differ(recorded: Harness) -> None:
    compared = fingerprints_of(recorded.settings).keys()
    assert compared == set(SETTING_NAMES) - {f"TOKENHOUSE_{name.upper()}" for name in OF_ONE_MACHINE}


def test_what_one_of_two_versions_does_not_know_is_no_difference(recorded: Harness) -> None:
    with recorded.app.app_context():
        (row,) = registry_of(recorded.services).servers()
        row.settings.pop("TOKENHOUSE_JWKS_MAX_AGE")
        row.settings["TOKENHOUSE_OF_THE_FUTURE"] = "x"
        assert differences(row, recorded.settings) == []


@pytest.mark.parametrize(("mode", "is_found"), [(0o600, False), (0o640, False), (0o604, True)])
def test_secret_files_of_everybody_are_found(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, *, is_found: bool
) -> None:
    path = tmp_path / "peppers"
    path.touch()
    path.chmod(mode)
    monkeypatch.setenv("TOKENHOUSE_SECRET_PEPPERS_FILE", str(path))
    monkeypatch.setenv("TOKENHOUSE_ISSUER_FILE", str(tmp_path))
    told = found(harness, "secret files")
    assert told == ([(WARNING, f"{path} may be read by others (mode {mode:04o})")] if is_found else [])


@pytest.mark.parametrize("mode", [0o642, 0o620, 0o666])
def test_secret_files_that_others_may_change_are_errors(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "peppers"
    path.touch()
    path.chmod(mode)
    monkeypatch.setenv("TOKENHOUSE_SECRET_PEPPERS_FILE", str(path))
    assert found(harness, "secret files") == [(ERROR, f"{path} may be changed by others (mode {mode:04o})")]


def test_keys_that_a_move_left_behind_are_found(
    tmp_path: Path, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"encryption_keys": f"k1:{'e1f2g3h4i5j6' * 3}"}
    with open_harness(tmp_path, clock, **key) as harness:
        harness.clock.advance(minutes=1)
        done = harness.run("keys", "move", "database")
        assert done.exit_code == 0, done.stderr
        ring, *private = sorted(tmp_path.glob("keyring.toml")) + sorted(tmp_path.glob("*.pem"))
        for path in (ring, *private):
            assert str(path) in done.stderr
    with open_harness(tmp_path, clock, migrated=False, with_key=False, keyring="database", **key) as harness:
        assert found(harness, "key ring")[0][0] is not ERROR
        monkeypatch.setattr(doctor_servers, "_DEFAULT_RING", ring)
        assert (WARNING, f"{ring} is left from before the ring was moved to the database") in found(harness, "key ring")


@pytest.mark.parametrize(
    ("url", "is_found"),
    [
        ("redis://10.1.2.3:1/0", True),
        ("rediss://10.1.2.3:1/0", False),
        ("redis://127.0.0.1:1/0", False),
        ("redis://localhost:1/0", False),
        ("unix:///nowhere", False),
    ],
)
def test_a_redis_elsewhere_without_tls_is_found(
    tmp_path: Path, clock: SettableClock, url: str, *, is_found: bool
) -> None:
    with open_harness(tmp_path, clock, redis_url=f"{url}?socket_connect_timeout=0.1") as harness:
        told = (WARNING, "it is on another machine, and reached without TLS")
        assert (told in found(harness, "redis")) is is_found


def test_a_week_is_remembered(recorded: Harness) -> None:
    recorded.clock.now += timedelta(days=6)
    with recorded.app.app_context():
        (row,) = registry_of(recorded.services).servers()
        assert not is_running(row, recorded.clock())


def go_back(recorded: Harness) -> None:
    """As a restored backup does: the newest entry is of ten minutes before."""
    db.session.execute(
        text("UPDATE servers SET seen_at = :before"), {"before": recorded.clock() - timedelta(minutes=10)}
    )
    db.session.commit()


def test_a_database_that_went_back_is_an_error_until_it_was_checked(
    recorded: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two").mkdir()
    told = (ERROR, "it went back to 2026-01-31T11:50:00Z: a server has seen a later state")
    with beside(recorded, tmp_path / "two") as two, recorded.app.app_context():  # type: ignore[attr-defined]
        running = registry_of(recorded.services)
        running.record()
        go_back(recorded)
        # Another server is the first to record itself. It cannot know.
        with two.app.app_context():
            registry_of(two.services).record()
        assert told not in found(recorded, "database")
        running.record()
        assert told in found(recorded, "database")
        # Its successor has not seen it, and says so too, as does the other server when this one is gone.
        recorded.clock.advance(minutes=1)
        registry_of(recorded.services).record()
        with two.app.app_context():
            registry_of(two.services).record()
        db.session.execute(text("DELETE FROM servers WHERE name = 'one'"))
        db.session.commit()
        assert told in found(recorded, "database")
        logged = "the database is of 2026-01-31T11:50:00Z, and this server has seen it at 2026-01-31T12:00:00Z: was a"
        assert capsys.readouterr().err.count(logged) == 1
        running.mark_checked()
        running.record()
        assert [severity for severity, _ in found(recorded, "database")] == [OK]


def test_what_was_checked_before_the_first_start_is_no_older_database(recorded: Harness) -> None:
    with recorded.app.app_context():
        registry = registry_of(recorded.services)
        registry.seen_by_snapshot = recorded.clock
        go_back(recorded)
        registry.mark_checked()
        registry.record()
        assert [severity for severity, _ in found(recorded, "database")] == [OK]


def test_a_snapshot_that_is_newer_than_the_database_is_noticed_after_others_have_started(
    recorded: Harness, tmp_path: Path
) -> None:
    (tmp_path / "two").mkdir()
    with beside(recorded, tmp_path / "two") as two, recorded.app.app_context():  # type: ignore[attr-defined]
        go_back(recorded)
        with two.app.app_context():
            registry_of(two.services).record()
        registry = registry_of(recorded.services)
        registry.seen_by_snapshot = recorded.clock
        registry.record()
        assert ERROR in [severity for severity, _ in found(recorded, "database")]
