"""Secrets over time: overlap, ends, limits and reports, on SQLite and PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from unit.authenticating import refusal
from unit.harness import Harness

from app.audit.events import SecretExpiring
from app.clients.encrypted_secrets import EncryptedSecrets
from app.clients.last_used import RECORD_DELAY
from app.clients.queries import MOST_SECRETS
from app.clients.secret_digests import SecretDigester
from app.clients.secrets import ClientSecrets, NewSecret, SecretState, state_of
from app.database.models import ClientSecretRow, db
from app.errors import InvalidClient, ManagementError, StillInUse
from app.types import Credentials

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
WEEK = timedelta(days=7)
LATER = datetime(9999, 1, 1, tzinfo=UTC)
IMPORTED = "an-imported-secret-of-some-length"


def is_let_in(harness: Harness, client_id: str, secret: str) -> bool:
    try:
        with harness.app.app_context():
            harness.verifier.verify_secret([Credentials(client_id, secret)], "client_secret_basic", "192.0.2.1")
    except InvalidClient:
        return False
    return True


def rotate(
    harness: Harness, client_id: str = "a", overlap: timedelta = WEEK, expires_after: timedelta | None = None
) -> NewSecret:
    with harness.app.app_context():
        return harness.services.clients.secrets.rotate(client_id, overlap=overlap, expires_after=expires_after)[0]


def use(harness: Harness, client_id: str, secret: str) -> None:
    assert is_let_in(harness, client_id, secret)
    harness.verifier.last_used.flush()


def working(harness: Harness, client_id: str = "a") -> list[str]:
    with harness.app.app_context():
        now = harness.clock()
        states = {row.secret_id: state_of(row, now) for row in harness.store.find(client_id).secrets}
        return [secret_id for secret_id, state in states.items() if state in {SecretState.VALID, SecretState.EXPIRING}]


def finish(harness: Harness, silent_for: timedelta, client_id: str = "a") -> list[str]:
    with harness.app.app_context():
        return [row.secret_id for row in harness.services.clients.secrets.finish(client_id, silent_for)]


def test_both_secrets_work_until_the_overlap_is_over(any_harness: Harness) -> None:
    old = any_harness.register("a")
    any_harness.clock.advance(days=100)
    new = rotate(any_harness)
    assert new.expires_at is None
    assert new.secret.startswith("ths_")
    any_harness.clock.advance(days=7, microseconds=-1)
    assert is_let_in(any_harness, "a", old.secret)
    assert is_let_in(any_harness, "a", new.secret)
    any_harness.clock.advance(microseconds=1)
    assert not is_let_in(any_harness, "a", old.secret)
    assert is_let_in(any_harness, "a", new.secret)


def test_an_end_that_comes_sooner_stays(any_harness: Harness) -> None:
    old = any_harness.register("a", expires_after=timedelta(days=2))
    rotate(any_harness)
    any_harness.clock.advance(days=2)
    assert not is_let_in(any_harness, "a", old.secret)


def test_no_overlap_ends_the_old_one_at_once(any_harness: Harness) -> None:
    old = any_harness.register("a")
    new = rotate(any_harness, overlap=timedelta())
    assert not is_let_in(any_harness, "a", old.secret)
    assert is_let_in(any_harness, "a", new.secret)


def test_the_overlapping_ones_are_told(any_harness: Harness) -> None:
    any_harness.register("a")
    first = rotate(any_harness, overlap=timedelta(days=1))
    any_harness.clock.advance(hours=1)
    with any_harness.app.app_context():
        _, older = any_harness.services.clients.secrets.rotate("a", overlap=timedelta(hours=2))
        assert {row.expires_at for row in older} == {NOON + timedelta(hours=3)}
        assert first.secret_id in {row.secret_id for row in older}
        assert len(older) == 2


def test_a_new_secret_may_end_itself(any_harness: Harness) -> None:
    any_harness.register("a")
    new = rotate(any_harness, expires_after=timedelta(days=90))
    assert new.expires_at == NOON + timedelta(days=90)
    any_harness.clock.advance(days=90)
    assert not is_let_in(any_harness, "a", new.secret)


def test_an_imported_secret_is_taken_over(any_harness: Harness) -> None:
    any_harness.register("a")
    with any_harness.app.app_context():
        new, _ = any_harness.services.clients.secrets.rotate("a", overlap=WEEK, secret=IMPORTED)
        assert new.secret == IMPORTED
        with pytest.raises(ManagementError, match="16"):
            any_harness.services.clients.secrets.rotate("a", overlap=WEEK, secret="short")
    assert is_let_in(any_harness, "a", IMPORTED)
    assert len(working(any_harness)) == 2


def test_secrets_that_ended_long_ago_are_deleted_and_no_others(any_harness: Harness) -> None:
    harness, day = any_harness, timedelta(days=1)
    lasting = harness.register("a").secret
    expired = rotate(harness, overlap=timedelta(days=100), expires_after=day).secret
    kept = rotate(harness, overlap=timedelta(days=100), expires_after=50 * day).secret
    revoked = rotate(harness, overlap=timedelta(days=100))
    with harness.app.app_context():
        harness.services.clients.secrets.revoke("a", revoked.secret_id)
    delete = harness.services.clients.secrets.delete_retired
    harness.clock.advance(days=30)
    with harness.app.app_context():
        delete()
        assert len(harness.store.find("a").secrets) == 4
    harness.clock.advance(seconds=1)
    delete()
    with harness.app.app_context():
        assert len(harness.store.find("a").secrets) == 3
    assert refusal(harness, Credentials("a", revoked.secret)) == ("wrong_secret", "a")
    assert refusal(harness, Credentials("a", expired)) == ("expired_secret", "a")
    harness.clock.advance(days=1)
    delete()
    assert refusal(harness, Credentials("a", expired)) == ("wrong_secret", "a")
    assert is_let_in(harness, "a", lasting)
    assert is_let_in(harness, "a", kept)


def test_ten_secrets_work_at_once_and_not_eleven(any_harness: Harness) -> None:
    made = [any_harness.register("a").secret]
    made += [rotate(any_harness).secret for _ in range(MOST_SECRETS - 1)]
    with pytest.raises(ManagementError, match="'a' has 10 secrets that work, and 10 is the most"):
        rotate(any_harness)
    assert all(is_let_in(any_harness, "a", secret) for secret in made)
    assert len(working(any_harness)) == MOST_SECRETS
    # With no overlap the others end, and there is room.
    rotate(any_harness, overlap=timedelta())
    assert len(working(any_harness)) == 1


def test_of_rotations_at_the_same_time_no_more_succeed_than_may(any_harness: Harness) -> None:
    any_harness.register("a")
    for _ in range(MOST_SECRETS - 3):
        rotate(any_harness)
    ready = threading.Barrier(6)

    def one(_: int) -> bool:
        ready.wait()
        try:
            rotate(any_harness)
        except ManagementError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(one, range(6))) == [False] * 4 + [True] * 2
    assert len(working(any_harness)) == MOST_SECRETS


def test_a_client_that_is_not_there_has_nothing_to_rotate(any_harness: Harness) -> None:
    with pytest.raises(ManagementError, match="there is no client 'nobody'"):
        rotate(any_harness, "nobody")


def test_a_secret_is_shown_by_no_repr(any_harness: Harness) -> None:
    any_harness.register("a")
    new = rotate(any_harness)
    assert repr(new) == f"NewSecret({new.secret_id})"


# revoke


def test_a_revoked_secret_ends_at_once_and_the_other_lives_on(any_harness: Harness) -> None:
    old = any_harness.register("a")
    new = rotate(any_harness)
    with any_harness.app.app_context():
        row, left = any_harness.services.clients.secrets.revoke("a", new.secret_id)
        assert (row.revoked_at, left) == (NOON, 1)
    assert is_let_in(any_harness, "a", old.secret)
    assert not is_let_in(any_harness, "a", new.secret)


def test_revoking_twice_keeps_the_first_time(any_harness: Harness) -> None:
    any_harness.register("a")
    (secret_id,) = working(any_harness)
    with any_harness.app.app_context():
        any_harness.services.clients.secrets.revoke("a", secret_id)
        any_harness.clock.advance(hours=1)
        row, left = any_harness.services.clients.secrets.revoke("a", secret_id)
        assert (row.revoked_at, left) == (NOON, 0)


@pytest.mark.parametrize("secret_id", ["s-nothing", "", "é", "s-of-b"])
def test_a_secret_of_somebody_else_is_not_there(any_harness: Harness, secret_id: str) -> None:
    any_harness.register("a")
    any_harness.register("b")
    (of_b,) = working(any_harness, "b")
    wanted = of_b if secret_id == "s-of-b" else secret_id
    with any_harness.app.app_context(), pytest.raises(ManagementError, match="'a' has no secret"):
        any_harness.services.clients.secrets.revoke("a", wanted)
    assert len(working(any_harness, "b")) == 1


# finish


def test_finish_retires_what_has_been_silent(any_harness: Harness) -> None:
    old = any_harness.register("a")
    any_harness.clock.advance(microseconds=1)
    (old_id,) = working(any_harness)
    use(any_harness, "a", old.secret)
    new = rotate(any_harness)
    use(any_harness, "a", new.secret)
    silence = timedelta(hours=1)
    any_harness.clock.advance(seconds=(silence + RECORD_DELAY).total_seconds() - 1)
    with pytest.raises(ManagementError, match=f"'a' may still use {old_id}"):
        finish(any_harness, silence)
    any_harness.clock.advance(seconds=1)
    assert finish(any_harness, silence) == [old_id]
    assert working(any_harness) == [new.secret_id]
    assert finish(any_harness, silence) == []


def test_finish_says_who_still_uses_it_from_where_since_when(any_harness: Harness) -> None:
    old = any_harness.register("a")
    any_harness.clock.advance(microseconds=1)
    (old_id,) = working(any_harness)
    rotate(any_harness)
    use(any_harness, "a", old.secret)
    any_harness.clock.advance(minutes=30)
    use(any_harness, "a", old.secret)
    with pytest.raises(ManagementError) as caught:
        finish(any_harness, timedelta(hours=1))
    assert str(caught.value) == (
        f"'a' may still use {old_id} (…{old.secret[-4:]}) from 192.0.2.1 since 2026-01-31T12:00:00Z until "
        "2026-01-31T12:30:00Z. Nothing was retired"
    )
    assert len(working(any_harness)) == 2


def test_finish_gives_a_secret_that_was_never_used_its_time(any_harness: Harness) -> None:
    any_harness.register("a")
    any_harness.clock.advance(microseconds=1)
    (old_id,) = working(any_harness)
    rotate(any_harness)
    with pytest.raises(ManagementError, match="made at 2026-01-31T12:00:00Z and not used yet"):
        finish(any_harness, timedelta(hours=1))
    any_harness.clock.advance(hours=1, minutes=2)
    assert finish(any_harness, timedelta(hours=1)) == [old_id]


def test_finish_retires_all_or_none(any_harness: Harness) -> None:
    any_harness.register("a")
    any_harness.clock.advance(microseconds=1)
    middle = rotate(any_harness)
    any_harness.clock.advance(hours=2)
    newest = rotate(any_harness)
    use(any_harness, "a", middle.secret)
    with pytest.raises(ManagementError, match=middle.secret_id):
        finish(any_harness, timedelta(hours=1))
    assert len(working(any_harness)) == 3
    any_harness.clock.advance(hours=2)
    assert len(finish(any_harness, timedelta(hours=1))) == 2
    assert working(any_harness) == [newest.secret_id]


def test_the_only_secret_is_never_retired(any_harness: Harness) -> None:
    made = any_harness.register("a")
    any_harness.clock.advance(days=1000)
    assert finish(any_harness, timedelta()) == []
    assert is_let_in(any_harness, "a", made.secret)


# Reports


@given(days=st.lists(st.integers(0, 400), min_size=1, max_size=4), asked=st.integers(0, 400))
def test_reports_are_right_to_the_second(harness: Harness, days: list[int], asked: int) -> None:
    with harness.app.app_context():
        for row in harness.store.list_all():
            harness.store.delete(row.client_id)
    today = harness.clock()
    ids = []
    for age in days:
        harness.clock.now = today - timedelta(days=age)
        ids.append(harness.register(expires_after=timedelta(days=age + 10)).client_id)
    harness.clock.now = today
    span = timedelta(days=asked)
    with harness.app.app_context():
        unused = {row.client_id for row in harness.store.list_all(unused_for=span)}
        older = {row.client_id for row in harness.store.list_all(secrets_older_than=span)}
        ending = {row.client_id for row in harness.store.list_all(expiring_in=span)}
        both = {row.client_id for row in harness.store.list_all(unused_for=span, expiring_in=span)}
    assert unused == older == {client_id for client_id, age in zip(ids, days, strict=True) if age >= asked}
    assert ending == (set(ids) if asked >= 10 else set())
    assert both == unused & ending


def test_a_use_makes_a_client_used(any_harness: Harness) -> None:
    made = any_harness.register("a")
    any_harness.register("b")
    any_harness.clock.advance(days=90)
    use(any_harness, "a", made.secret)
    with any_harness.app.app_context():
        assert [row.client_id for row in any_harness.store.list_all(unused_for=timedelta(days=90))] == ["b"]


def test_a_secret_that_no_longer_works_is_in_no_report(any_harness: Harness) -> None:
    any_harness.register("a")
    any_harness.clock.advance(days=400)
    rotate(any_harness, overlap=timedelta())
    with any_harness.app.app_context():
        assert any_harness.store.list_all(secrets_older_than=timedelta(days=365)) == []
        assert any_harness.store.list_all(expiring_in=timedelta(days=30)) == []


# The end is told


def told(harness: Harness) -> list[SecretExpiring]:
    return list(harness.services.clients.secrets.claim_expiring())


def test_the_end_of_a_secret_is_told_once_a_day_in_its_last_thirty(any_harness: Harness) -> None:
    any_harness.register("a", expires_after=timedelta(days=31))
    (secret_id,) = working(any_harness)
    any_harness.clock.advance(days=1, seconds=-1)
    assert told(any_harness) == []
    any_harness.clock.advance(seconds=1)
    expected = SecretExpiring(
        client_id="a", secret_id=secret_id, expires_at=NOON + timedelta(days=31), last_used_at=None
    )
    assert told(any_harness) == [expected]
    assert told(any_harness) == []
    days = 0
    for _ in range(30 * 24 * 2):
        any_harness.clock.advance(minutes=30)
        days += len(told(any_harness))
    assert days == 29


def test_of_many_workers_one_tells(any_harness: Harness) -> None:
    for number in range(5):
        any_harness.register(f"c{number}", expires_after=timedelta(days=3))
    with any_harness.app.app_context():
        digester = SecretDigester(any_harness.settings.secret_peppers)
        outbox = any_harness.services.audit.outbox
        workers = [
            ClientSecrets(db.engine, db.session, digester, any_harness.clock, outbox, EncryptedSecrets(()), ())
            for _ in range(6)
        ]
    ready = threading.Barrier(len(workers))

    def tell(worker: ClientSecrets) -> list[str]:
        ready.wait()
        return [event.client_id for event in worker.claim_expiring()]

    with ThreadPoolExecutor(len(workers)) as pool:
        heard = [client_id for ids in pool.map(tell, workers) for client_id in ids]
    assert sorted(heard) == [f"c{number}" for number in range(5)]


def test_nothing_is_told_of_clients_that_are_switched_off_or_secrets_that_are_over(any_harness: Harness) -> None:
    for name in ("disabled", "deleted", "revoked", "over"):
        any_harness.register(name, expires_after=timedelta(days=1 if name == "over" else 5))
    with any_harness.app.app_context():
        any_harness.store.disable("disabled")
        any_harness.store.delete("deleted")
        (secret,) = any_harness.store.find("revoked").secrets
        any_harness.services.clients.secrets.revoke("revoked", secret.secret_id)
    any_harness.clock.advance(days=1)
    assert told(any_harness) == []


def test_states(any_harness: Harness) -> None:
    row = ClientSecretRow(expires_at=None, revoked_at=None)
    assert state_of(row, NOON) is SecretState.VALID
    row.expires_at = NOON
    assert state_of(row, NOON - timedelta(microseconds=1)) is SecretState.EXPIRING
    assert state_of(row, NOON) is SecretState.EXPIRED
    row.revoked_at = NOON - timedelta(days=1)
    assert state_of(row, NOON - timedelta(hours=1)) is SecretState.REVOKED
    assert any_harness.store


# Whatever happens over time


@dataclass
class Known:
    """What a model knows of a secret."""

    secret: str
    made_at: datetime
    ends_at: datetime | None = None
    revoked: bool = False
    used_at: datetime | None = None

    def is_usable(self, now: datetime) -> bool:
        return not self.revoked and (self.ends_at is None or self.ends_at > now)


class SecretsOverTime(RuleBasedStateMachine):
    """Rotations, uses and finishes at random moments; a model says which secrets work, and which may be retired."""

    harness: Harness
    numbers = count()

    @initialize()
    def begin(self) -> None:
        self.client_id = f"over-time-{next(self.numbers)}"
        made = self.harness.register(self.client_id)
        self.known = [Known(made.secret, self.harness.clock())]
        self.harness.clock.advance(seconds=1)

    @rule(seconds=st.one_of(st.integers(1, 7200), st.integers(1, 20 * 86400)))
    def wait(self, seconds: int) -> None:
        self.harness.clock.advance(seconds=seconds)

    @rule(overlap=st.timedeltas(timedelta(), timedelta(days=14)), ends=st.none() | st.integers(60, 30 * 86400))
    def rotate(self, overlap: timedelta, ends: int | None) -> None:
        now = self.harness.clock()
        lasting = [one for one in self.known if one.is_usable(now) and overlap and (one.ends_at or LATER) > now]
        if len(lasting) >= MOST_SECRETS:
            with pytest.raises(ManagementError, match="10 is the most"):
                rotate(self.harness, self.client_id, overlap)
            return
        new = rotate(self.harness, self.client_id, overlap, timedelta(seconds=ends) if ends else None)
        for one in self.known:
            if one.is_usable(now):
                one.ends_at = min(one.ends_at or LATER, now + overlap)
        self.known.append(Known(new.secret, now, now + timedelta(seconds=ends) if ends else None))
        self.harness.clock.advance(seconds=1)

    @rule(which=st.integers(0, 30))
    def use(self, which: int) -> None:
        now = self.harness.clock()
        one = self.known[which % len(self.known)]
        assert is_let_in(self.harness, self.client_id, one.secret) == one.is_usable(now)
        if one.is_usable(now):
            self.harness.verifier.last_used.flush()
            one.used_at = now.replace(second=0, microsecond=0)

    @rule(silent_for=st.timedeltas(timedelta(minutes=1), timedelta(days=3)))
    def finish(self, silent_for: timedelta) -> None:
        now = self.harness.clock()
        older = [one for one in self.known if one.is_usable(now)][:-1]
        if any((one.used_at or one.made_at) > now - silent_for - RECORD_DELAY for one in older):
            with pytest.raises(StillInUse):
                finish(self.harness, silent_for, self.client_id)
            return
        assert len(finish(self.harness, silent_for, self.client_id)) == len(older)
        for one in older:
            one.revoked = True

    @invariant()
    def those_that_work_are_shown_as_working(self) -> None:
        if hasattr(self, "known"):
            now = self.harness.clock()
            assert len(working(self.harness, self.client_id)) == sum(one.is_usable(now) for one in self.known)


def test_secrets_work_exactly_as_long_as_was_said(harness: Harness) -> None:
    SecretsOverTime.harness = harness
    run_state_machine_as_test(SecretsOverTime)  # type: ignore[no-untyped-call]
