"""What was taken back is remembered for as long as it matters, and nothing else is."""

from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from sqlalchemy import func, insert, make_url, select
from unit.harness import Harness, open_harness, statements

from app.database.models import RevokedTokenRow, db
from app.errors import ManagementError, ServiceUnavailable
from app.tokens.revocations import LEEWAY, RevokedToken
from app.tokens.validation import from_epoch

HOUR = 3600


@pytest.fixture
def harness(any_harness: Harness) -> Harness:
    return any_harness


def token_of(harness: Harness, client_id: str, jti: str = "a-jti", seconds: int = HOUR) -> RevokedToken:
    return RevokedToken(jti, client_id, ("urn:a",), int(harness.clock().timestamp()) + seconds)


def remembered(harness: Harness) -> set[str]:
    with harness.app.app_context(), db.engine.connect() as connection:
        return set(connection.scalars(select(RevokedTokenRow.jti)))


def reason(harness: Harness, client_id: str, jti: str = "a-jti", issued: timedelta = timedelta(0)) -> str | None:
    with harness.app.app_context():
        return harness.services.tokens.revocations.reason_against(
            client_id, jti, from_epoch(int((harness.clock() + issued).timestamp()))
        )


def test_a_token_lives_until_it_is_taken_back_and_twice_is_once(harness: Harness) -> None:
    client = harness.register()
    assert reason(harness, client.client_id) is None
    with harness.app.app_context():
        for _ in range(2):
            harness.services.tokens.revocations.revoke(token_of(harness, client.client_id))
    assert reason(harness, client.client_id) == "revoked_token"
    assert reason(harness, client.client_id, "another-jti") is None
    assert remembered(harness) == {"a-jti"}


def test_what_has_expired_is_forgotten_by_itself(harness: Harness) -> None:
    client = harness.register()
    with harness.app.app_context():
        for jti, seconds in (("short", 60), ("long", HOUR)):
            harness.services.tokens.revocations.revoke(token_of(harness, client.client_id, jti, seconds))
    harness.clock.now += timedelta(seconds=60) + LEEWAY - timedelta(seconds=1)
    harness.services.tokens.revocations.delete_expired()
    assert remembered(harness) == {"short", "long"}
    harness.clock.now += timedelta(seconds=1)
    harness.services.tokens.revocations.delete_expired()
    assert remembered(harness) == {"long"}
    harness.clock.now += timedelta(days=1)
    harness.services.tokens.revocations.delete_expired()
    assert remembered(harness) == set()


def test_very_many_are_forgotten_in_pieces(harness: Harness) -> None:
    now = harness.clock()
    rows = [
        {"jti": str(n), "client_id": "c", "audiences": [], "exp": int(now.timestamp()) - HOUR, "revoked_at": now}
        for n in range(2500)
    ]
    with harness.app.app_context(), db.engine.begin() as connection:
        connection.execute(insert(RevokedTokenRow), rows)
    with harness.app.app_context():
        harness.services.tokens.revocations.delete_expired()
        with db.engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(RevokedTokenRow)) == 0


@pytest.mark.parametrize("verb", ["disable", "delete", "revoke_tokens"])
def test_all_tokens_of_a_client_die_with_one_row_and_later_ones_live(harness: Harness, verb: str) -> None:
    client = harness.register()
    harness.clock.now += timedelta(milliseconds=600)
    with harness.app.app_context():
        getattr(harness.store, verb)(client.client_id)
    if verb == "disable":
        assert reason(harness, client.client_id) == "disabled_client"
        with harness.app.app_context():
            harness.store.enable(client.client_id)
    gone = "deleted_client" if verb == "delete" else "tokens_revoked"
    assert reason(harness, client.client_id) == gone
    assert reason(harness, client.client_id, issued=-timedelta(hours=1)) == gone
    assert reason(harness, client.client_id, issued=timedelta(seconds=1)) == (gone if verb == "delete" else None)
    assert remembered(harness) == set()


def test_a_clock_that_goes_back_revives_nothing(harness: Harness) -> None:
    client = harness.register()
    with harness.app.app_context():
        harness.store.revoke_tokens(client.client_id)
        harness.clock.now -= timedelta(minutes=5)
        until = harness.store.revoke_tokens(client.client_id).tokens_not_before
    assert until == (harness.clock() + timedelta(minutes=5)).replace(microsecond=0)


def test_nobodys_token_is_dead(harness: Harness) -> None:
    assert reason(harness, "nobody") == "unknown_client"
    with harness.app.app_context(), pytest.raises(ManagementError, match="there is no client 'nobody'"):
        harness.store.revoke_tokens("nobody")


def test_what_became_of_a_token_is_one_statement(harness: Harness) -> None:
    client = harness.register()
    reason(harness, client.client_id)
    with statements(harness) as seen:
        reason(harness, client.client_id)
    assert len(seen) == 1


def test_a_database_that_is_away_is_said_to_be(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock) as harness:
        _refuses_all(harness)


def _refuses_all(harness: Harness) -> None:
    client = harness.register()
    Path(str(make_url(harness.settings.database_url.get_secret_value()).database)).rename(harness.folder / "moved")
    with harness.app.app_context():
        for ask in (
            lambda: harness.services.tokens.revocations.reason_against(client.client_id, "j", harness.clock()),
            lambda: harness.services.tokens.revocations.revoke(token_of(harness, client.client_id)),
            harness.services.tokens.revocations.version,
            harness.services.tokens.revocations.live,
            harness.services.tokens.revocations.clients,
        ):
            with pytest.raises(ServiceUnavailable) as caught:
                ask()
            assert caught.value.reason.startswith("database_")
