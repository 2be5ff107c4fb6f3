"""A token is active while it is valid, not revoked, and its client is enabled."""

from dataclasses import replace
from typing import Any

import jwt
import pytest
from unit.harness import Harness

from app.errors import ServiceUnavailable, StartError
from app.tokens.revocations import RevokedToken
from app.tokens.status import TokenStatus, may_introspect
from app.tokens.validation import Problem, TokenValidation
from app.types import ALL_RESOURCES, Client

CLIENT = Client("an-id", "A", "client_secret", (), (), (), None)
OTHER = replace(CLIENT, client_id="another-id")
CLAIMS = {"client_id": "an-id", "jti": "j", "aud": ["urn:a", "urn:b"], "exp": 7, "iat": 5}


@pytest.fixture
def token(harness: Harness) -> str:
    client = harness.register("an-id")
    answer = harness.app.test_client().post(
        "/oauth/token", data={"grant_type": "client_credentials"}, headers={"Authorization": client.basic}
    )
    return str(answer.get_json()["access_token"])


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False, "verify_exp": False}))


def test_a_token_is_active_until_it_is_revoked(harness: Harness, token: str) -> None:
    statuses = harness.services.tokens.statuses
    claims = claims_of(token)
    assert statuses.of_token(token) == TokenStatus(claims, None)
    harness.services.tokens.revocations.revoke(RevokedToken("another-jti", "an-id", (), claims["exp"]))
    assert statuses.of_token(token).reason is None
    harness.services.tokens.revocations.revoke(statuses.of_token(token).as_revoked())
    assert statuses.of_token(token) == TokenStatus(claims, "revoked_token")


def test_a_token_dies_with_its_client(harness: Harness, token: str) -> None:
    with harness.app.app_context():
        harness.store.disable("an-id")
    assert harness.services.tokens.statuses.of_token(token) == TokenStatus(claims_of(token), "disabled_client")


def test_the_tokens_of_a_client_end_at_once(harness: Harness, token: str) -> None:
    with harness.app.app_context():
        harness.store.revoke_tokens("an-id")
    assert harness.services.tokens.statuses.of_token(token).reason == "tokens_revoked"


def test_what_is_no_token_of_ours_has_the_first_reason_against_it(harness: Harness, token: str) -> None:
    statuses = harness.services.tokens.statuses
    assert statuses.of_token("x") == TokenStatus(None, "malformed_token")
    harness.clock.advance(hours=2)
    assert statuses.of_token(token) == TokenStatus(None, "expired")
    problems = (Problem(statuses.of_token("x").reason), Problem(statuses.of_token(token).reason))  # type: ignore[arg-type]
    assert statuses.of_validated(TokenValidation(problems, {}, CLAIMS)) == TokenStatus(None, problems[0].reason)
    assert statuses.of_validated(TokenValidation(problems[1:], {}, None)) == TokenStatus(None, problems[1].reason)


def test_without_a_key_ring_nothing_is_known(harness: Harness, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> None:
        raise StartError("no ring")

    statuses = harness.services.tokens.statuses
    monkeypatch.setattr(statuses, "_ring", unreadable)
    with pytest.raises(ServiceUnavailable) as caught:
        statuses.of_token(token)
    assert caught.value.reason == "no_key_ring"


def test_a_status_says_whose_token_it_is_and_what_is_stored_when_it_is_revoked() -> None:
    ours, nobodys = TokenStatus(CLAIMS, None), TokenStatus(None, None)
    assert (ours.jti, ours.audiences) == ("j", ("urn:a", "urn:b"))
    assert (nobodys.jti, nobodys.audiences) == (None, ())
    assert TokenStatus({**CLAIMS, "aud": "urn:c"}, None).audiences == ("urn:c",)
    assert ours.as_revoked() == RevokedToken("j", "an-id", ("urn:a", "urn:b"), 7)
    assert [status.check_client(client) for status in (ours, nobodys) for client in (CLIENT, OTHER)] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("client_id", "introspects", "may"),
    [
        ("an-id", (), True),
        ("another-id", (), False),
        ("another-id", (ALL_RESOURCES,), True),
        ("another-id", ("urn:b", "urn:x"), True),
        ("another-id", ("urn:x",), False),
    ],
)
def test_a_client_introspects_its_own_tokens_and_those_for_its_resources(
    client_id: str, introspects: tuple[str, ...], *, may: bool
) -> None:
    client = replace(CLIENT, client_id=client_id, introspects=introspects)
    assert may_introspect(client, TokenStatus(CLAIMS, None)) is may
    assert may_introspect(client, TokenStatus(None, None)) is False
