"""A key ring in the database: encrypted, whole, and the same for all, on SQLite and PostgreSQL."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import SettableClock
from sqlalchemy import func, select, text
from unit.harness import Harness, open_harness

from app.database.models import KeyRingRow, SigningKeyRow, db
from app.errors import ManagementError, StartError
from app.keyring.model import KeyState
from app.keyring.serialization import to_pem

OLD, NEW = f"e1:{'o' * 40}", f"e2:{'n' * 40}"


@pytest.fixture
def shared(tmp_path: Path, clock: SettableClock, migrated_url: str) -> Iterator[Harness]:
    """A Tokenhouse whose ring is in the database, without keys."""
    with open_harness(
        tmp_path, clock, database_url=migrated_url, keyring="database", encryption_keys=OLD, with_key=False
    ) as harness:
        yield harness


def rows(harness: Harness) -> list[SigningKeyRow]:
    with harness.app.app_context():
        return list(db.session.scalars(select(SigningKeyRow).order_by(SigningKeyRow.signs_from)))


def test_an_empty_ring_says_what_to_do(shared: Harness) -> None:
    backend = shared.services.keys.manager.backend
    assert backend.is_empty()
    assert backend.version() is None
    with pytest.raises(StartError, match="the key ring in the database has no keys: `flask keys generate` makes one"):
        backend.read()


def test_what_is_written_is_read_by_another(shared: Harness, tmp_path: Path) -> None:
    ring, key = shared.services.keys.manager.generate()
    other = shared.services.keys.open_backend("database")
    assert other.read() == ring
    assert [to_pem(key.private_key, None) for key in other.read().keys] == [
        to_pem(key.private_key, None) for key in ring.keys
    ]
    assert ring.signing_key(shared.clock()) == key
    assert not other.is_empty()
    assert list(tmp_path.glob("*.pem")) == []


def test_no_row_holds_a_private_key_in_clear(shared: Harness) -> None:
    ring, _ = shared.services.keys.manager.generate()
    for row, key in zip(rows(shared), ring.keys, strict=True):
        pem = to_pem(key.private_key, None)
        assert row.encryption_key_id == "e1"
        assert b"PRIVATE" not in row.private_key
        assert pem.splitlines()[1] not in row.private_key
        assert len(row.private_key) == len(pem) + 12 + 16


def test_a_version_is_another_after_each_change_and_only_then(shared: Harness) -> None:
    backend = shared.services.keys.manager.backend
    seen = [backend.version()]
    shared.services.keys.manager.generate()
    seen.append(backend.version())
    shared.services.keys.manager.rotate()
    seen.append(backend.version())
    assert seen == [None, 1, 2]
    assert shared.services.keys.manager.rotate_if_due() is None
    assert backend.version() == 2


def test_a_row_of_another_key_is_not_taken(shared: Harness) -> None:
    """Who can write rows cannot put one key's private half under another's name."""
    shared.services.keys.manager.generate()
    with shared.app.app_context():
        first, second = db.session.scalars(select(SigningKeyRow))
        first.private_key, second.private_key = second.private_key, first.private_key
        db.session.commit()
    with pytest.raises(StartError, match="the key 'e1' of TOKENHOUSE_ENCRYPTION_KEYS does not decrypt it"):
        shared.services.keys.manager.backend.read()


def test_encryption_keys_rotate_with_the_next_change(tmp_path: Path, clock: SettableClock, migrated_url: str) -> None:
    def reopened(keys: str) -> Iterator[Harness]:
        return open_harness(  # type: ignore[return-value]
            tmp_path,
            clock,
            database_url=migrated_url,
            keyring="database",
            encryption_keys=keys,
            with_key=False,
        )

    with reopened(OLD) as harness:  # type: ignore[attr-defined]
        ring, _ = harness.services.keys.manager.generate()
    with reopened(f"{NEW},{OLD}") as harness:  # type: ignore[attr-defined]
        assert harness.services.keys.manager.backend.read() == ring
        harness.services.keys.manager.rotate()
        assert {row.encryption_key_id for row in rows(harness)} == {"e2"}
    with reopened(NEW) as harness:  # type: ignore[attr-defined]
        assert {key.kid for key in ring.keys} < {key.kid for key in harness.services.keys.manager.backend.read().keys}
    with reopened(OLD) as harness:  # type: ignore[attr-defined]
        with pytest.raises(StartError, match="the key 'e2' is not in TOKENHOUSE_ENCRYPTION_KEYS"):
            harness.services.keys.manager.backend.read()
        with pytest.raises(StartError, match="the key 'e2' is not in TOKENHOUSE_ENCRYPTION_KEYS"):
            harness.services.keys.manager.rotate()


def test_of_two_rotations_at_once_the_second_is_told_that_it_is_done(shared: Harness) -> None:
    shared.services.keys.manager.generate()
    shared.clock.advance(days=8)
    ready = threading.Barrier(4)

    def rotate(_: int) -> str:
        ready.wait()
        with shared.app.app_context():
            try:
                shared.services.keys.manager.rotate()
            except ManagementError as error:
                return str(error)
        return "rotated"

    with ThreadPoolExecutor(4) as pool:
        told = sorted(pool.map(rotate, range(4)))
    assert told.count("rotated") == 1
    assert all("nothing was changed" in line for line in told if line != "rotated")
    ring = shared.services.keys.manager.backend.read()
    assert len(ring.keys) == 3
    assert ring.state_of(ring.keys[0], shared.clock()) is KeyState.SIGNING


def test_first_keys_made_at_once_are_one_pair_and_more_that_wait(shared: Harness) -> None:
    ready = threading.Barrier(3)

    def generate(_: int) -> None:
        ready.wait()
        with shared.app.app_context():
            shared.services.keys.manager.generate()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(generate, range(3)))
    ring = shared.services.keys.manager.backend.read()
    states = [ring.state_of(key, shared.clock()) for key in ring.keys]
    assert states.count(KeyState.SIGNING) == 1
    assert states.count(KeyState.ANNOUNCED) == 3
    with shared.app.app_context():
        assert db.session.scalar(select(func.count()).select_from(KeyRingRow)) == 1


def test_a_change_that_fails_leaves_everything(shared: Harness) -> None:
    ring, _ = shared.services.keys.manager.generate()

    def fail(_: object) -> None:
        raise ManagementError("no")

    with pytest.raises(ManagementError, match="no"):
        shared.services.keys.manager.backend.change(fail)  # type: ignore[arg-type]
    assert shared.services.keys.manager.backend.read() == ring


def test_a_database_without_tables_is_one_line_and_names_no_host(shared: Harness) -> None:
    with shared.app.app_context():
        db.drop_all()
    backend = shared.services.keys.manager.backend
    for ask in (backend.version, backend.read, backend.is_empty):
        with pytest.raises(StartError) as caught:
            ask()
        assert str(caught.value).startswith("the key ring in the database cannot be read (")
        assert str(caught.value).endswith("): is TOKENHOUSE_DATABASE_URL right, has `flask db upgrade` run?")
    with pytest.raises(ManagementError, match="the key ring in the database cannot be written, and is as it was: "):
        shared.services.keys.manager.generate()


def test_times_in_rows_are_checked_like_those_of_a_file(shared: Harness) -> None:
    shared.services.keys.manager.generate()
    with shared.app.app_context():
        db.session.execute(text("UPDATE signing_keys SET alg = 'HS256'"))
        db.session.commit()
    with pytest.raises(StartError, match="alg must be RS256, PS256, ES256, EdDSA"):
        shared.services.keys.manager.backend.read()


def test_a_shared_ring_allows_for_other_machines(shared: Harness) -> None:
    """Five seconds to be heard of, a minute for clocks, one for rounding."""
    rules = shared.services.keys.manager.rules
    assert (rules.propagation_seconds, rules.skew_seconds) == (5, 60)


def test_what_is_unsafe_stays_so(shared: Harness) -> None:
    shared.services.keys.manager.generate()
    rotated = shared.services.keys.manager.rotate(unsafe=True)
    assert [key.is_unsafe for key in rotated.keys] == [False, True, False]
    assert shared.services.keys.manager.backend.read() == rotated


def test_a_revoked_key_leaves_with_the_ring_that_says_so(shared: Harness) -> None:
    _, first = shared.services.keys.manager.generate()
    ring = shared.services.keys.manager.revoke(first.kid)
    assert first.kid not in {key.kid for key in ring.published_keys(shared.clock())}
    assert ring.signing_key(shared.clock()).kid != first.kid
