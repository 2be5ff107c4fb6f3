"""The ring of a process: changes are taken whole, what is broken or unsafe is not, and the last good one stays."""

import json
import logging
import multiprocessing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import SettableClock
from sqlalchemy import text
from support.keys import add_key
from unit.harness import Harness, open_harness

from app import shared_state
from app.audit.events import ClockFellBehind, Event, KeyRingLoaded, KeyRingRejected, KeyStateChanged
from app.database.models import db
from app.errors import StartError, Unreachable
from app.keyring.active import ActiveRing
from app.keyring.backends.base import KeyringBackend
from app.keyring.model import Ring
from app.keyring.serialization import dump_ring, load_ring

ENCRYPTION = f"e1:{'k' * 40}"


class Worker:
    """A process that serves with the ring of a house."""

    def __init__(self, harness: Harness) -> None:
        self.heard: list[Event] = []
        self.current = ActiveRing(
            harness.services.keys.open_backend(harness.settings.keyring),
            harness.services.keys.manager.rules,
            self,
            harness.clock,
        )

    def emit(self, event: Event) -> None:
        self.heard.append(event)

    def signs_with(self) -> str:
        return self.current.signing_key().kid


@pytest.fixture(params=["file", "database"])
def harness(request: pytest.FixtureRequest, tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """With a ring in each kind of home that changes."""
    more = {"keyring": "database", "encryption_keys": ENCRYPTION} if request.param == "database" else {}
    with open_harness(tmp_path, clock, with_key=False, **more) as made:
        made.services.keys.manager.generate()
        yield made


@pytest.fixture
def in_file(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    with open_harness(tmp_path, clock, with_key=False) as made:
        made.services.keys.manager.generate()
        yield made


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> shared_state.SharedState:
    """What gunicorn's master shares with its workers."""
    shared = shared_state.SharedState()
    monkeypatch.setattr(shared_state, "_shared", shared)
    return shared


def stored(memory: shared_state.SharedState) -> Ring | None:
    """The ring in the memory, if there is one."""
    content = memory.load()
    return load_ring(content, "RS256") if content else None


def ring_file(harness: Harness) -> Path:
    return harness.folder / "keyring.toml"


def break_ring(harness: Harness) -> None:
    if harness.settings.keyring == "database":
        with harness.app.app_context():
            db.session.execute(text("UPDATE key_ring SET version = version + 1"))
            db.session.execute(text("UPDATE signing_keys SET encryption_key_id = 'gone'"))
            db.session.commit()
    else:
        ring_file(harness).write_text("[[keys]]\nkid = ")


def mend_ring(harness: Harness, content: bytes) -> None:
    if harness.settings.keyring == "database":
        with harness.app.app_context():
            db.session.execute(text("UPDATE signing_keys SET encryption_key_id = 'e1'"))
            db.session.commit()
    else:
        ring_file(harness).write_bytes(content)


def test_a_change_is_taken_at_the_next_look_and_told(harness: Harness) -> None:
    worker = Worker(harness)
    first = worker.signs_with()
    harness.clock.advance(days=8)
    standby = worker.current().standbys(harness.clock())[0].kid
    harness.services.keys.manager.rotate()
    worker.current.refresh()
    harness.clock.advance(minutes=7)
    assert worker.signs_with() == standby != first
    (event,) = worker.heard
    assert isinstance(event, KeyRingLoaded)
    assert event.signing == first
    assert len(event.published) == 3
    worker.current.refresh()
    assert [type(event) for event in worker.heard[1:]] == [KeyStateChanged, KeyStateChanged]


def test_no_request_looks_at_the_file(in_file: Harness) -> None:
    worker = Worker(in_file)
    first = worker.signs_with()
    in_file.services.keys.manager.revoke(first)
    assert worker.signs_with() == first
    worker.current.refresh()
    assert worker.signs_with() != first


# What is told


def test_each_change_of_state_is_told_with_its_moment(harness: Harness) -> None:
    worker = Worker(harness)
    worker.current.refresh()
    first, standby = (key.kid for key in worker.current().keys)
    turn = worker.current().keys[1].signs_from
    harness.clock.advance(days=90, seconds=90)
    worker.current.refresh()
    assert worker.heard == [
        KeyStateChanged(kid=first, state="retiring", since=turn),
        KeyStateChanged(kid=standby, state="signing", since=turn),
    ]
    worker.heard.clear()
    harness.clock.advance(days=1)
    worker.current.refresh()
    gone_at = turn + timedelta(hours=24, seconds=60)
    assert worker.heard == [KeyStateChanged(kid=first, state="gone", since=gone_at)]
    worker.current.refresh()
    assert len(worker.heard) == 1


def test_of_several_workers_one_tells(harness: Harness, memory: shared_state.SharedState) -> None:
    workers = [Worker(harness) for _ in range(3)]
    for worker in workers:
        worker.current.refresh()
    harness.services.keys.manager.revoke(workers[0].signs_with())
    for worker in workers:
        worker.current.refresh()
    told = [type(event) for event in workers[0].heard]
    assert told == [KeyRingLoaded, KeyStateChanged, KeyStateChanged, KeyStateChanged]
    assert [worker.heard for worker in workers[1:]] == [[], []]
    # Another change of the same kind is told again, by whoever comes first.
    harness.services.keys.manager.revoke(workers[0].signs_with())
    for worker in reversed(workers):
        worker.current.refresh()
    assert [len(worker.heard) for worker in workers] == [4, 0, 4]
    assert memory


def test_processes_claim_once_and_again_after_a_while(
    memory: shared_state.SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")
    first = fork.Value("i", 0)

    def claim() -> None:
        for _ in range(200):
            if memory.claim("one thing"):
                with first.get_lock():
                    first.value += 1

    processes = [fork.Process(target=claim) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert first.value == 1
    assert not memory.claim("one thing")
    assert [memory.claim(f"other {n}") for n in range(300)] == [True] * 300
    monkeypatch.setattr(shared_state, "CLAIMED_SECONDS", 0.0)
    assert memory.claim("other 299")


# Time


def test_a_clock_that_jumps_back_changes_nothing_and_is_told(
    harness: Harness, memory: shared_state.SharedState, caplog: pytest.LogCaptureFixture
) -> None:
    harness.clock.advance(days=90)
    worker = Worker(harness)
    worker.current.refresh()
    before = [key.kid for key in worker.current.published_keys()]
    signing = worker.current.signing_key()
    assert signing.kid != worker.current().keys[0].kid
    harness.clock.advance(hours=-1)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            worker.current.refresh()
    assert worker.current.signing_key() == signing
    assert [key.kid for key in worker.current.published_keys()] == before
    assert worker.current.is_clock_behind
    (event,) = worker.heard
    assert isinstance(event, ClockFellBehind)
    assert event.behind_seconds == 3600
    # A worker that is born now has seen nothing itself.
    assert memory
    assert Worker(harness).current.signing_key() == signing
    harness.clock.advance(hours=1)
    with caplog.at_level(logging.INFO):
        worker.current.refresh()
    assert not worker.current.is_clock_behind
    behind, right = [record.getMessage() for record in caplog.records]
    reached = "2026-05-01T12:00:00Z"
    assert behind == (
        f"the clock is 3600 s behind the time reached at {reached}: keys keep the states that they had then"
    )
    assert right == "the clock is right again"


def test_keys_are_published_and_sign_though_the_clock_is_before_them(harness: Harness) -> None:
    """The ring was made an hour from now: one of two clocks was wrong, and no verifier must find an empty JWKS."""
    harness.clock.advance(hours=-1)
    worker = Worker(harness)
    worker.current.refresh()
    assert len(worker.current.published_keys()) == 2
    assert worker.current.signing_key() == worker.current().keys[0]
    assert worker.current.is_clock_behind


def test_a_ring_from_the_future_is_not_taken(in_file: Harness) -> None:
    """Written on a machine whose clock is ten days ahead: its standby would sign before verifiers know it."""
    worker = Worker(in_file)
    before = worker.current()
    in_file.clock.advance(days=10)
    in_file.services.keys.manager.rotate()
    in_file.clock.advance(days=-10)
    worker.current.refresh()
    assert worker.current() == before
    assert worker.current.fault == (
        "it was written at 2026-02-10T12:00:00Z, and it is 2026-01-31T12:00:00Z here: one of the two clocks is wrong"
    )


def test_a_broken_ring_is_told_once_and_the_last_good_one_stays(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(harness)
    before = worker.current()
    content = ring_file(harness).read_bytes() if ring_file(harness).exists() else b""
    break_ring(harness)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            worker.current.refresh()
            assert worker.current() is before
    assert worker.current.fault
    (event,) = worker.heard
    assert isinstance(event, KeyRingRejected)
    assert event.fault == worker.current.fault
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    caplog.clear()
    mend_ring(harness, content)
    with caplog.at_level(logging.INFO):
        worker.current.refresh()
    assert worker.current.fault is None
    assert worker.current() == before
    assert [record.getMessage() for record in caplog.records] == ["the key ring is valid again"]


def test_a_database_that_is_away_rejects_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(harness)
    before = worker.current()
    faults = iter(["ConnectionTimeout", "OperationalError", "ConnectionTimeout"])

    def fail() -> object:
        raise Unreachable(f"the key ring in the database cannot be read ({next(faults)})")

    monkeypatch.setattr(worker.current.backend, "version", fail)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            worker.current.refresh()
    assert worker.current() is before
    assert worker.current.fault
    assert not worker.heard
    assert [record.getMessage() for record in caplog.records] == [
        "the last good key ring stays in use: the key ring in the database cannot be read (ConnectionTimeout)"
    ]
    monkeypatch.undo()
    worker.current.refresh()
    assert worker.current.fault is None


def test_a_process_without_a_ring_restores_one_that_was_kept_elsewhere(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Worker(harness).current()

    def fail() -> object:
        raise Unreachable("away")

    started = Worker(harness)
    monkeypatch.setattr(started.current.backend, "version", fail)
    with pytest.raises(Unreachable):
        started.current()
    started.current.restore = lambda: kept
    assert started.current() is kept
    assert started.current.fault == "away"


def test_a_ring_that_is_gone_changes_nothing_for_who_has_one(in_file: Harness) -> None:
    worker = Worker(in_file)
    before = worker.current()
    ring_file(in_file).rename(in_file.folder / "away.toml")
    worker.current.refresh()
    assert worker.current() is before
    assert "there is no key ring at" in str(worker.current.fault)


def test_a_process_that_never_had_a_ring_says_why(harness: Harness) -> None:
    break_ring(harness)
    worker = Worker(harness)
    with pytest.raises(StartError):
        worker.current()
    worker.current.refresh()
    assert worker.current.fault


def test_an_edit_that_would_sign_too_early_is_not_taken(in_file: Harness) -> None:
    worker = Worker(in_file)
    first = worker.signs_with()
    standby = worker.current().standbys(in_file.clock())[0]
    now = in_file.clock() + timedelta(minutes=1)
    in_file.clock.now = now
    early = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    turn = f"{standby.signs_from:%Y-%m-%dT%H:%M:%SZ}"
    ring_file(in_file).write_text(ring_file(in_file).read_text().replace(turn, early))
    worker.current.refresh()
    assert worker.signs_with() == first
    assert worker.current.fault == (
        f"{standby.kid} would sign from 2026-01-31T12:01:00Z on, before verifiers know it: it is published at "
        "2026-01-31T12:00:00Z, and the earliest safe time is 2026-01-31T12:05:03Z"
    )
    assert isinstance(worker.heard[0], KeyRingRejected)
    # Once the time is there, the same ring is safe.
    in_file.clock.now = now + timedelta(minutes=11)
    worker.current.refresh()
    assert worker.current.fault is None
    assert worker.signs_with() == standby.kid


def test_an_edit_that_claims_an_old_publication_is_not_believed(in_file: Harness) -> None:
    worker = Worker(in_file)
    first = worker.signs_with()
    add_key(
        in_file.services.keys.manager.backend,
        published_at=in_file.clock() - timedelta(days=30),
        signs_from=in_file.clock() + timedelta(minutes=1),
    )
    in_file.clock.advance(minutes=2)
    worker.current.refresh()
    assert worker.signs_with() == first
    assert "before verifiers know it" in str(worker.current.fault)


def test_an_edit_that_drops_a_key_with_live_tokens_is_not_taken(in_file: Harness) -> None:
    worker = Worker(in_file)
    first = worker.current().signing_key(in_file.clock())
    in_file.clock.advance(days=90)
    in_file.services.keys.manager.backend.change(lambda ring: Ring(ring.keys[1:], ring.signing_alg, ring.written_at))
    worker.current.refresh()
    assert worker.current.fault == (
        f"{first.kid} would leave the JWKS while tokens of it are alive: the earliest safe time is 2026-05-02T12:01:00Z"
    )
    in_file.clock.advance(hours=24, seconds=60)
    worker.current.refresh()
    assert worker.current.fault is None


def test_a_link_that_is_swapped_is_a_change(tmp_path: Path, clock: SettableClock) -> None:
    """As Kubernetes does it: a link to a link to a folder."""
    (tmp_path / "a").mkdir()
    with open_harness(tmp_path / "a", clock, with_key=False) as maker:
        maker.services.keys.manager.generate()
        content = {path.name: path.read_bytes() for path in maker.folder.glob("*[lm]")}
        clock.advance(days=8)
        maker.services.keys.manager.rotate()
        later = {path.name: path.read_bytes() for path in maker.folder.glob("*[lm]")}
    mount = tmp_path / "mount"
    for name, files in (("..1", content), ("..2", later)):
        (mount / name).mkdir(parents=True)
        for file, written in files.items():
            (mount / name / file).write_bytes(written)
            (mount / name / file).chmod(0o600)
    (mount / "..data").symlink_to("..1")
    (mount / "keyring.toml").symlink_to("..data/keyring.toml")
    clock.advance(days=-8)
    with open_harness(tmp_path, clock, with_key=False, keyring=str(mount / "keyring.toml")) as harness:
        assert harness.services.keys.manager.rules.propagation_seconds == 300
        worker = Worker(harness)
        assert len(worker.current().keys) == 2
        clock.advance(days=8, hours=1)
        (mount / "..new").symlink_to("..2")
        (mount / "..new").rename(mount / "..data")
        worker.current.refresh()
        assert len(worker.current().keys) == 3
        assert worker.current.fault is None


# The last good one, for a worker that starts meanwhile


def test_a_new_worker_starts_with_the_last_good_ring(harness: Harness, memory: shared_state.SharedState) -> None:
    old = Worker(harness)
    signing = old.signs_with()
    break_ring(harness)
    new = Worker(harness)
    assert new.signs_with() == signing
    assert new.current.fault
    assert stored(memory) == old.current()


def test_a_worker_of_another_server_finds_no_ring_there(harness: Harness) -> None:
    Worker(harness).current()
    break_ring(harness)
    with pytest.raises(StartError):
        Worker(harness).current()


def test_the_memory_follows_every_change(harness: Harness, memory: shared_state.SharedState) -> None:
    worker = Worker(harness)
    worker.current()
    harness.clock.advance(days=8)
    ring = harness.services.keys.manager.rotate()
    worker.current.refresh()
    recalled = stored(memory)
    assert recalled == ring
    assert recalled.written_at == harness.clock()
    for kept, key in zip(recalled.keys, ring.keys, strict=True):
        assert kept.private_key.private_numbers() == key.private_key.private_numbers()  # type: ignore[union-attr]


def test_empty_memory_and_half_a_write_are_nothing(harness: Harness, memory: shared_state.SharedState) -> None:
    assert stored(memory) is None
    memory.store(dump_ring(harness.services.keys.manager.backend.read()))
    assert stored(memory)
    whole: Any = memory._memory  # noqa: SLF001 - Another worker's write, half-way.
    whole[200] ^= 1
    assert stored(memory) is None
    memory.store(dump_ring(harness.services.keys.manager.backend.read()))
    assert stored(memory)
    whole[:8] = (2**40).to_bytes(8)
    assert stored(memory) is None


def test_a_ring_that_does_not_fit_is_not_remembered(
    harness: Harness, memory: shared_state.SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_state, "SIZE_BYTES", 100)
    memory.store(dump_ring(harness.services.keys.manager.backend.read()))
    monkeypatch.undo()
    assert stored(memory) is None


# The cache time


def test_the_longest_cache_time_is_noted_and_never_falls(tmp_path: Path, clock: SettableClock) -> None:
    def recorded(max_age: str) -> set[int]:
        with open_harness(tmp_path, clock, with_key=False, jwks_max_age=max_age) as harness:
            if harness.services.keys.manager.backend.is_empty():
                harness.services.keys.manager.generate()
            harness.services.keys.active.record_max_age()
            return {key.jwks_max_age for key in harness.services.keys.manager.backend.read().keys}

    assert recorded("5m") == {300}
    assert recorded("1h") == {3600}
    assert recorded("5m") == {3600}


def test_a_longer_cache_time_puts_off_a_turn_that_would_be_too_early(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, with_key=False, key_announce="10m", key_rotation_interval="10m") as harness:
        harness.services.keys.manager.generate()
    with open_harness(tmp_path, clock, with_key=False, jwks_max_age="1h") as harness:
        harness.services.keys.active.record_max_age()
        (standby,) = harness.services.keys.manager.backend.read().standbys(clock())
        assert standby.signs_from == clock() + timedelta(seconds=3603)


def test_a_ring_that_cannot_be_written_is_used_as_it_is(
    in_file: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_harness(in_file.folder, in_file.clock, with_key=False, jwks_max_age="1h") as longer:
        backend: KeyringBackend = longer.services.keys.active.backend
        logging.getLogger("app.keyring.active").addHandler(caplog.handler)

        def refuse(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("app.keyring.backends.file.write_private_file", refuse)
        longer.services.keys.active.record_max_age()
        logging.getLogger("app.keyring.active").removeHandler(caplog.handler)
        (record,) = caplog.records
        assert record.getMessage() == (
            f"the cache time of the JWKS could not be recorded in the key ring: {backend.name} cannot be written, "
            "and is as it was: "
            "Read-only file system"
        )


# What is seen of it over HTTP


def test_ready_is_degraded_while_the_ring_is_broken_and_tokens_go_on(harness: Harness) -> None:
    client = harness.register("a")
    caller = harness.app.test_client()
    form = {"grant_type": "client_credentials", "client_id": "a", "client_secret": client.secret}
    assert caller.post("/oauth/token", data=form).status_code == 200
    content = ring_file(harness).read_bytes() if ring_file(harness).exists() else b""
    break_ring(harness)
    harness.services.keys.active.refresh()
    ready = caller.get("/readyz")
    assert (ready.status_code, ready.get_json()) == (
        200,
        {
            "status": "degraded",
            "checks": {"database": "ok", "keyring": "degraded", "settings": "ok", "audit_log": "ok"},
        },
    )
    assert caller.post("/oauth/token", data=form).status_code == 200
    assert len(json.loads(caller.get("/.well-known/jwks.json").data)["keys"]) == 2
    mend_ring(harness, content)
    harness.services.keys.active.refresh()
    assert caller.get("/readyz").get_json()["status"] == "ok"
