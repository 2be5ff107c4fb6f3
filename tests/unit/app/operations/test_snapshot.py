"""The snapshot holds what the database has, and only the newest one that nobody has touched is used."""

import shutil
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from unit.harness import Harness, open_harness

from app.clients import outage_memory
from app.config.loader import load_settings
from app.crypto.encryption import Encrypter
from app.database.models import db
from app.errors import StartError
from app.operations import snapshot as snapshots
from app.operations.doctor import examine
from app.operations.findings import Severity
from app.operations.snapshot import Snapshot, SnapshotError, open_snapshot

KEY = f"k1:{'e' * 40}"


def snapshot_of(harness: Harness) -> Snapshot:
    found = open_snapshot(harness.services, db.engine)
    assert found
    return found


@pytest.fixture(params=["file", "database"])
def kept(tmp_path: Path, clock: SettableClock, migrated_url: str, request: pytest.FixtureRequest) -> Iterator[Harness]:
    """An installation that writes snapshots, whose ring is in a file or in the database."""
    keyring = {"keyring": "database"} if request.param == "database" else {}
    settings = {
        "database_url": migrated_url,
        "encryption_keys": KEY,
        "snapshot": str(tmp_path / "made" / "snapshot"),
    }
    with open_harness(tmp_path, clock, with_key=False, **settings, **keyring) as harness, harness.app.app_context():
        harness.services.keys.manager.generate()
        yield harness


@pytest.fixture
def written(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """One whose snapshot is written."""
    settings = {"encryption_keys": KEY, "snapshot": str(tmp_path / "snapshot"), "keyring": "database"}
    with open_harness(tmp_path, clock, with_key=False, **settings) as harness, harness.app.app_context():
        harness.services.keys.manager.generate()
        harness.register("a")
        snapshot_of(harness).write()
        yield harness


def refusal(harness: Harness) -> str:
    with pytest.raises(SnapshotError) as caught:
        snapshot_of(harness).load()
    return str(caught.value).removeprefix(str(harness.settings.snapshot))


def test_it_holds_the_rows_of_clients_that_may_get_tokens(kept: Harness) -> None:
    kept.register("a", scope=("read",), introspects=("urn:a",))
    kept.register("b", expires_after=timedelta(days=2))
    kept.register("c", token_endpoint_auth_method="client_secret_jwt")
    kept.register("disabled")
    with kept.app.app_context():
        kept.store.disable("disabled")
    snapshot_of(kept).write()
    memory = kept.services.clients.outage_memory
    memory.used.update("abc")
    memory.poll()
    found = snapshot_of(kept).load()
    assert found.clients == {client_id: known.rows for client_id, known in memory._known.items()}  # noqa: SLF001
    assert list(found.clients) == ["a", "b", "c"]
    ring = snapshot_of(kept).ring()
    if kept.settings.keyring == "database":
        assert ring == kept.services.keys.manager.backend.read()
    else:
        assert ring is None


def test_its_files_are_for_their_owner_and_show_nothing(written: Harness) -> None:
    path = written.settings.snapshot
    assert path
    for file in (path, path.with_name("snapshot.newest")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert b"PRIVATE" not in file.read_bytes()
        assert b"client" not in file.read_bytes()
        assert file.read_bytes().startswith(b"tokenhouse-snapshot 1 k1\n")


def test_those_that_were_used_last_are_kept(written: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MOST_CLIENTS", 2)
    for client_id in ("b", "c"):
        written.register(client_id)
    db.session.execute(text("UPDATE clients SET last_used_at = created_at WHERE client_id IN ('b', 'c')"))
    db.session.commit()
    snapshot_of(written).write()
    assert list(snapshot_of(written).load().clients) == ["b", "c"]


@given(place=st.integers(min_value=0), flipped=st.integers(min_value=1, max_value=255))
def test_any_changed_byte_is_noticed(written: Harness, place: int, flipped: int) -> None:
    path = written.settings.snapshot
    assert path
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[place % len(whole)] ^= flipped
    path.write_bytes(changed)
    with pytest.raises(SnapshotError):
        snapshot_of(written).load()
    path.write_bytes(whole)
    assert snapshot_of(written).load()


@given(length=st.integers(min_value=0))
def test_a_part_of_one_is_refused(written: Harness, length: int) -> None:
    path = written.settings.snapshot
    assert path
    whole = path.read_bytes()
    path.write_bytes(whole[: length % len(whole)])
    with pytest.raises(SnapshotError):
        snapshot_of(written).load()
    path.write_bytes(whole)


def test_an_older_one_is_refused(written: Harness) -> None:
    path = written.settings.snapshot
    assert path
    older = path.with_name("older")
    shutil.copy(path, older)
    written.store.disable("a")
    # In the same millisecond, too.
    snapshot_of(written).write()
    assert snapshot_of(written).load().clients == {}
    older.replace(path)
    assert refusal(written) == " is older than the newest one that this machine has written"


def test_without_the_number_of_the_newest_one_it_is_refused(written: Harness) -> None:
    path = written.settings.snapshot
    assert path
    newest = path.with_name("snapshot.newest")
    shutil.copy(path, newest)
    assert "was changed, is of another issuer" in refusal(written)
    newest.unlink()
    assert "cannot be read: No such file or directory" in refusal(written)


def test_it_is_used_until_the_grace_ends(written: Harness, clock: SettableClock) -> None:
    clock.advance(minutes=15)
    assert snapshot_of(written).load()
    clock.advance(seconds=1)
    assert refusal(written) == " is of 2026-01-31T12:00:00Z, longer ago than TOKENHOUSE_OUTAGE_GRACE"
    clock.advance(minutes=-17)
    assert refusal(written) == " is of 2026-01-31T12:00:00Z, which is in the future: is the clock right?"


def test_one_of_another_issuer_or_key_is_refused(written: Harness) -> None:
    for issuer, key in (("https://other.example.com", KEY), (written.settings.issuer, f"k2:{'e' * 40}")):
        environment = {
            "TOKENHOUSE_CONFIG": "production",
            "TOKENHOUSE_ISSUER": issuer,
            "TOKENHOUSE_ENCRYPTION_KEYS": key,
            "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}",
            "TOKENHOUSE_SNAPSHOT": str(written.settings.snapshot),
        }
        other = load_settings(environment)
        assert other.snapshot
        active = written.services.keys.active
        with pytest.raises(SnapshotError, match="was changed, is of another issuer, or its key has left"):
            Snapshot(other.snapshot, other, db.engine, active, written.clock).load()


def test_one_of_another_version_is_refused(written: Harness) -> None:
    path = written.settings.snapshot
    assert path
    content = path.read_bytes()
    path.write_bytes(content.replace(b"snapshot 1", b"snapshot 2", 1))
    assert refusal(written) == " is no snapshot of this version of Tokenhouse"
    sealed = Encrypter(written.settings.encryption_keys).encrypt(
        b'{"number": 1}', bound_to=f"the snapshot of {written.settings.issuer}"
    )[1]
    path.write_bytes(b"tokenhouse-snapshot 1 k1\n" + sealed)
    assert refusal(written) == " is of another version of Tokenhouse"


def test_a_fault_is_logged_once(written: Harness, caplog: pytest.LogCaptureFixture) -> None:
    path = written.settings.snapshot
    assert path
    snapshot = snapshot_of(written)
    assert snapshot.clients()
    path.unlink()
    for _ in range(3):
        assert snapshot.clients() is None
        assert snapshot.ring() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"the snapshot is not used: {path} cannot be read: No such file or directory"
    ]


def test_one_worker_of_a_machine_writes(written: Harness) -> None:
    path = written.settings.snapshot
    assert path
    first, second = snapshot_of(written), snapshot_of(written)
    first.poll()
    before = path.stat().st_mtime_ns
    second.poll()
    assert path.stat().st_mtime_ns == before
    # It is too early for another one.
    first.poll()
    assert path.stat().st_mtime_ns == before


def test_the_memory_gets_its_clients_when_the_database_goes_away(written: Harness, clock: SettableClock) -> None:
    clock.advance(minutes=5)
    client = written.register("later")
    caller = written.app.test_client()
    header = {"Authorization": client.basic}
    snapshot_of(written).write()
    db.session.remove()
    db.engine.dispose()
    (written.folder / "tokenhouse.db").rename(written.folder / "away")
    form = {"grant_type": "client_credentials"}
    assert caller.post("/oauth/token", data=form, headers=header).status_code == 200
    clock.advance(seconds=outage_memory.STALE_SECONDS + 1)
    assert caller.post("/oauth/token", data=form, headers=header).status_code == 200


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"encryption_keys": ""}, "TOKENHOUSE_ENCRYPTION_KEYS is required where TOKENHOUSE_SNAPSHOT is set"),
        ({"encryption_keys": KEY, "outage_grace": "0"}, "TOKENHOUSE_SNAPSHOT needs a TOKENHOUSE_OUTAGE_GRACE above 0"),
    ],
)
def test_settings_without_which_it_is_useless_stop_a_start(settings: dict[str, str], allowed: str) -> None:
    named = {f"TOKENHOUSE_{name.upper()}": value for name, value in settings.items()}
    base = {
        "TOKENHOUSE_CONFIG": "production",
        "TOKENHOUSE_ISSUER": "https://a.example.com",
        "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}",
        "TOKENHOUSE_SNAPSHOT": "x",
    }
    with pytest.raises(StartError, match=allowed):
        load_settings({**base, **named})


def test_doctor_shows_it(written: Harness) -> None:
    def findings() -> list[tuple[Severity, str]]:
        return [(one.severity, one.what) for one in examine(written.services) if one.check == "snapshot"]

    assert findings() == [(Severity.OK, "of 2026-01-31T12:00:00Z, with 1 client")]
    path = written.settings.snapshot
    assert path
    path.unlink()
    assert findings() == [(Severity.WARNING, f"{path} cannot be read: No such file or directory")]
