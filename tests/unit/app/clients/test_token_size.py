"""A client whose default token could never be issued is not created; any other gets its token."""

from functools import cache
from typing import Any

import pytest
from conftest import SettableClock
from hypothesis import assume, given
from hypothesis import strategies as st
from unit.harness import Harness

from app.clients.fields import ClientFields
from app.clients.token_size import TokenSize
from app.crypto.algorithms import ALGORITHMS
from app.database.models import db
from app.errors import ManagementError
from app.keyring.model import SigningKey
from app.tokens.issuer import AccessTokenIssuer
from app.types import Client

ISSUER = "https://tokens.example.com"
MAX_CHARACTERS = 2048
TOO_LONG = (
    "a token of an-id for urn:default with all scopes may have 2049 characters, and none is issued with more than 2048 "
    "(TOKENHOUSE_TOKEN_MAX_CHARACTERS): give it fewer or shorter scopes, audiences and claims"
)


@cache
def key() -> SigningKey:
    clock = SettableClock()
    return SigningKey("k" * 43, "RS256", clock(), clock(), None, ALGORITHMS["RS256"].generate(4096))


def check(client_id: str = "an-id", **fields: Any) -> None:
    TokenSize(ISSUER, "urn:default", MAX_CHARACTERS).check(client_id, ClientFields("A service", **fields))


def fits(client_id: str = "an-id", **fields: Any) -> bool:
    try:
        check(client_id, **fields)
    except ManagementError:
        return False
    return True


@given(
    client_id=st.text("abc-", min_size=1, max_size=255),
    scope=st.lists(st.text("abc", min_size=1, max_size=300), max_size=8, unique=True),
    audience=st.text("abc", min_size=1, max_size=1000).map("urn:{}".format),
)
def test_whatever_is_created_gets_its_default_token(client_id: str, scope: list[str], audience: str) -> None:
    assume(fits(client_id, scope=tuple(scope), audiences=(audience, "urn:other")))
    client = Client(client_id, "A", "client_secret", (), tuple(scope), (audience,), None)
    token = AccessTokenIssuer(ISSUER, key, SettableClock(), MAX_CHARACTERS)(
        client=client,
        scope=" ".join(scope) or None,
        expires_in=60,
        audiences=(audience,),
        confirmation={"jkt": "x" * 43},
    )
    assert len(token["access_token"]) <= MAX_CHARACTERS


def test_one_character_decides() -> None:
    longest = max(length for length in range(1, 1500) if fits(scope=("x" * length,)))
    assert 600 < longest < 800
    with pytest.raises(ManagementError) as caught:
        check(scope=("x" * (longest + 1),))
    assert str(caught.value) == TOO_LONG


def test_a_client_that_exists_is_changed_unless_its_scopes_or_audiences_are(harness: Harness) -> None:
    client = harness.register(scope=("read",))
    with harness.app.app_context():
        row = harness.store.find(client.client_id)
        # As an earlier release allowed it.
        row.scope = ["x" * 4000, "y" * 90]
        row.audiences = [f"urn:{'z' * 1900}"]
        db.session.commit()
        harness.store.update(client.client_id, description="Changed.")
        with pytest.raises(ManagementError, match="with all scopes may have 9"):
            harness.store.update(client.client_id, scope=("x" * 4000, "y" * 91))
        harness.store.update(client.client_id, scope=("read",))
