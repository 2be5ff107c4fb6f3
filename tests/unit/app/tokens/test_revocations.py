"""What was taken back is remembered for as long as it matters, and nothing else is."""

from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from sqlalchemy import func, insert, make_url, select
from unit.house import House, open_house, statements

from app.database.models import RevokedTokenRow, db
from app.errors import ManagementError, ServiceUnavailable
from app.tokens.revocations import LEEWAY, RevokedToken
from app.tokens.validation import moment

HOUR = 3600


@pytest.fixture
def house(any_house: House) -> House:
    return any_house


def token_of(house: House, client_id: str, jti: str = "a-jti", seconds: int = HOUR) -> RevokedToken:
    return RevokedToken(jti, client_id, ("urn:a",), int(house.clock().timestamp()) + seconds)


def remembered(house: House) -> set[str]:
    with house.app.app_context(), db.engine.connect() as connection:
        return set(connection.scalars(select(RevokedTokenRow.jti)))


def reason(house: House, client_id: str, jti: str = "a-jti", issued: timedelta = timedelta(0)) -> str | None:
    with house.app.app_context():
        return house.services.oauth.revocations.reason_against(
            client_id, jti, moment(int((house.clock() + issued).timestamp()))
        )


def test_a_token_lives_until_it_is_taken_back_and_twice_is_once(house: House) -> None:
    client = house.register()
    assert reason(house, client.client_id) is None
    with house.app.app_context():
        for _ in range(2):
            house.services.oauth.revocations.revoke(token_of(house, client.client_id))
    assert reason(house, client.client_id) == "revoked_token"
    assert reason(house, client.client_id, "another-jti") is None
    assert remembered(house) == {"a-jti"}


def test_what_has_expired_is_forgotten_by_itself(house: House) -> None:
    client = house.register()
    with house.app.app_context():
        for jti, seconds in (("short", 60), ("long", HOUR)):
            house.services.oauth.revocations.revoke(token_of(house, client.client_id, jti, seconds))
    house.clock.now += timedelta(seconds=60) + LEEWAY - timedelta(seconds=1)
    house.services.oauth.revocations.forget_expired()
    assert remembered(house) == {"short", "long"}
    house.clock.now += timedelta(seconds=1)
    house.services.oauth.revocations.forget_expired()
    assert remembered(house) == {"long"}
    house.clock.now += timedelta(days=1)
    house.services.oauth.revocations.forget_expired()
    assert remembered(house) == set()


def test_very_many_are_forgotten_in_pieces(house: House) -> None:
    now = house.clock()
    rows = [
        {"jti": str(n), "client_id": "c", "audiences": [], "exp": int(now.timestamp()) - HOUR, "revoked_at": now}
        for n in range(2500)
    ]
    with house.app.app_context(), db.engine.begin() as connection:
        connection.execute(insert(RevokedTokenRow), rows)
    with house.app.app_context():
        house.services.oauth.revocations.forget_expired()
        with db.engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(RevokedTokenRow)) == 0


@pytest.mark.parametrize("verb", ["disable", "delete", "revoke_tokens"])
def test_all_tokens_of_a_client_die_with_one_row_and_later_ones_live(house: House, verb: str) -> None:
    client = house.register()
    house.clock.now += timedelta(milliseconds=600)
    with house.app.app_context():
        getattr(house.store, verb)(client.client_id)
    if verb == "disable":
        assert reason(house, client.client_id) == "disabled_client"
        with house.app.app_context():
            house.store.enable(client.client_id)
    gone = "deleted_client" if verb == "delete" else "tokens_revoked"
    assert reason(house, client.client_id) == gone
    assert reason(house, client.client_id, issued=-timedelta(hours=1)) == gone
    assert reason(house, client.client_id, issued=timedelta(seconds=1)) == (gone if verb == "delete" else None)
    assert remembered(house) == set()


def test_a_clock_that_goes_back_revives_nothing(house: House) -> None:
    client = house.register()
    with house.app.app_context():
        house.store.revoke_tokens(client.client_id)
        house.clock.now -= timedelta(minutes=5)
        until = house.store.revoke_tokens(client.client_id).tokens_not_before
    assert until == (house.clock() + timedelta(minutes=5)).replace(microsecond=0)


def test_nobodys_token_is_dead(house: House) -> None:
    assert reason(house, "nobody") == "unknown_client"
    with house.app.app_context(), pytest.raises(ManagementError, match="there is no client 'nobody'"):
        house.store.revoke_tokens("nobody")


def test_what_became_of_a_token_is_one_statement(house: House) -> None:
    client = house.register()
    reason(house, client.client_id)
    with statements(house) as seen:
        reason(house, client.client_id)
    assert len(seen) == 1


def test_a_database_that_is_away_is_said_to_be(tmp_path: Path, clock: SettableClock) -> None:
    with open_house(tmp_path, clock) as house:
        _refuses_all(house)


def _refuses_all(house: House) -> None:
    client = house.register()
    Path(str(make_url(house.settings.database_url.get_secret_value()).database)).rename(house.folder / "moved")
    with house.app.app_context():
        for ask in (
            lambda: house.services.oauth.revocations.reason_against(client.client_id, "j", house.clock()),
            lambda: house.services.oauth.revocations.revoke(token_of(house, client.client_id)),
            house.services.oauth.revocations.version,
            house.services.oauth.revocations.live,
            house.services.oauth.revocations.clients,
        ):
            with pytest.raises(ServiceUnavailable) as caught:
                ask()
            assert caught.value.reason.startswith("database_")
