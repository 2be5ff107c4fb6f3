"""The access token: its exact header and claims, and that any library verifies it."""

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
import pytest
from conftest import SettableClock
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc import jwt as joserfc_jwt

from app.crypto.algorithms import ALGORITHMS
from app.errors import OAuthError, ServiceUnavailable, StartError
from app.keyring.model import Ring, SigningKey
from app.tokens.issuer import AccessToken, AccessTokenIssuer
from app.types import AccessTokenGrant, Client

ISSUER = "https://tokens.example.com"
NOON = int(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp())


@cache
def private_key(number: int) -> rsa.RSAPrivateKey:
    """A key that is the same in each test of this process."""
    return rsa.generate_private_key(65537, 2048 + 0 * number)


def signing_key(kid: str, number: int, signs_from: datetime) -> SigningKey:
    return SigningKey(kid, "RS256", datetime(2025, 1, 1, tzinfo=UTC), signs_from, None, private_key(number))


RING_TIMES = {
    "old": datetime(2025, 1, 1, tzinfo=UTC),
    "current": datetime(2026, 1, 1, tzinfo=UTC),
    "next": datetime(2026, 2, 1, tzinfo=UTC),
}


@pytest.fixture(scope="module")
def ring() -> Ring:
    return Ring(tuple(signing_key(kid, number, time) for number, (kid, time) in enumerate(RING_TIMES.items())))


def sign(generate: AccessTokenIssuer, client: Client, grant: AccessTokenGrant) -> AccessToken:
    scope = " ".join(grant.scope) or None
    return generate(client=client, scope=scope, expires_in=grant.lifetime_seconds, audiences=grant.audiences)


def issue(ring: Ring, clock: SettableClock, grant: AccessTokenGrant) -> AccessToken:
    client = Client("an-id", "A service", "client_secret", ("client_credentials",), ("read",), (), None)
    return sign(AccessTokenIssuer(ISSUER, lambda: ring.signing_key(clock()), clock), client, grant)


def parts(token: AccessToken) -> tuple[dict[str, object], dict[str, object]]:
    header, claims, _ = token["access_token"].split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(part + "==")) for part in (header, claims))  # type: ignore[return-value]


def test_header_and_claims_are_exactly_those_of_the_contract(ring: Ring, clock: SettableClock) -> None:
    token = issue(ring, clock, AccessTokenGrant(("write", "read"), ("urn:a",), 900))
    header, claims = parts(token)
    assert header == {"alg": "RS256", "typ": "at+jwt", "kid": "current"}
    assert claims == {
        "iss": ISSUER,
        "sub": "an-id",
        "client_id": "an-id",
        "aud": "urn:a",
        "iat": NOON,
        "exp": NOON + 900,
        "jti": token.jti,
        "scope": "write read",
    }
    assert (token.kid, token.audiences) == ("current", ("urn:a",))
    assert {**token, "access_token": ""} == {
        "access_token": "",
        "token_type": "Bearer",
        "expires_in": 900,
        "scope": "write read",
    }


def test_further_claims_replace_none_that_is_issued(ring: Ring, clock: SettableClock) -> None:
    client = Client("an-id", "A service", "client_secret", ("client_credentials",), ("read",), (), None)
    claims = {"tenant": "acme", "roles": ["reader"], "sub": "root", "scope": "all", "exp": 0}
    issuer = AccessTokenIssuer(ISSUER, lambda: ring.keys[0], clock)
    token = issuer(client=client, scope="read", expires_in=60, audiences=("urn:a",), claims=claims)
    assert parts(token)[1] == {
        "iss": ISSUER,
        "sub": "an-id",
        "client_id": "an-id",
        "aud": "urn:a",
        "iat": NOON,
        "exp": NOON + 60,
        "jti": token.jti,
        "scope": "read",
        "tenant": "acme",
        "roles": ["reader"],
    }


def test_several_audiences_are_a_list(ring: Ring, clock: SettableClock) -> None:
    assert parts(issue(ring, clock, AccessTokenGrant((), ("urn:b", "urn:a"), 1)))[1]["aud"] == ["urn:b", "urn:a"]


def test_a_token_without_scopes_has_no_scope_claim(ring: Ring, clock: SettableClock) -> None:
    assert "scope" not in parts(issue(ring, clock, AccessTokenGrant((), ("urn:a",), 1)))[1]


@pytest.mark.parametrize(
    ("grant", "refused_as", "told"),
    [
        (
            AccessTokenGrant(("read",), ("urn:a", "urn:b", f"urn:{'c' * 800}"), 60),
            "invalid_target",
            "request fewer resources.",
        ),
        (AccessTokenGrant(("read", "x" * 800), ("urn:a", "urn:b"), 60), "invalid_scope", "request fewer scopes."),
    ],
)
def test_a_token_that_is_too_long_is_refused(
    ring: Ring, clock: SettableClock, grant: AccessTokenGrant, refused_as: str, told: str
) -> None:
    client = Client("an-id", "A service", "client_secret", ("client_credentials",), ("read",), (), None)
    length = len(sign(AccessTokenIssuer(ISSUER, lambda: ring.keys[0], clock), client, grant)["access_token"])
    assert sign(AccessTokenIssuer(ISSUER, lambda: ring.keys[0], clock, length), client, grant)
    with pytest.raises(OAuthError) as caught:
        sign(AccessTokenIssuer(ISSUER, lambda: ring.keys[0], clock, length - 1), client, grant)
    assert (caught.value.error, caught.value.reason) == (refused_as, "token_too_long")
    assert caught.value.description == f"The token would have more than {length - 1} characters: {told}"
    assert caught.value.client_id == "an-id"


def test_iat_is_never_ahead(ring: Ring, clock: SettableClock) -> None:
    clock.advance(microseconds=999_999)
    claims = parts(issue(ring, clock, AccessTokenGrant((), ("urn:a",), 60)))[1]
    assert (claims["iat"], claims["exp"]) == (NOON, NOON + 60)


def test_each_token_has_a_jti_of_128_random_bits(ring: Ring, clock: SettableClock) -> None:
    ids = {issue(ring, clock, AccessTokenGrant((), ("urn:a",), 60)).jti for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", jti) for jti in ids)


@pytest.mark.parametrize("scope", [(), ("read",), ("!", "~", "a:b/c?d=e&f,g;h")])
@pytest.mark.parametrize("audiences", [("urn:a",), ("urn:a", "https://b.example/?x=%20")])
def test_pyjwt_reads_what_was_issued(
    ring: Ring, scope: tuple[str, ...], audiences: tuple[str, ...], clock: SettableClock
) -> None:
    clock.now = datetime.now(UTC)
    token = issue(ring, clock, AccessTokenGrant(scope, audiences, 60))
    by_kid = {key.kid: jwt.PyJWK(key.public_jwk) for key in ring.published_keys(clock())}
    decoded = jwt.decode_complete(
        token["access_token"],
        by_kid[jwt.get_unverified_header(token["access_token"])["kid"]],
        algorithms=["RS256"],
        audience=audiences[-1],
        issuer=ISSUER,
        options={"require": ["iss", "sub", "aud", "exp", "iat", "jti", "client_id"]},
    )
    assert (decoded["header"], decoded["payload"]) == parts(token)


def test_the_signature_is_rs256_over_header_and_claims(ring: Ring, clock: SettableClock) -> None:
    token = issue(ring, clock, AccessTokenGrant((), ("urn:a",), 60))
    signed, _, signature = token["access_token"].rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    private_key(1).public_key().verify(raw, signed.encode(), PKCS1v15(), SHA256())


class _AllAlgorithms(jws.JWSRegistry):
    """joserfc warns of ``EdDSA``, whose new name no verifier knows yet."""

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


REGISTRY = _AllAlgorithms(algorithms=list(ALGORITHMS))
CHARACTERS = st.characters(codec="utf-8")


@cache
def key_of(alg: str) -> SigningKey:
    always = datetime(2025, 1, 1, tzinfo=UTC)
    return SigningKey(f"kid-of-{alg}", alg, always, always, None, ALGORITHMS[alg].generate(2048))


@pytest.mark.parametrize("alg", ALGORITHMS)
@given(
    issuer=st.text(CHARACTERS),
    client_id=st.text(CHARACTERS),
    scope=st.lists(st.text(CHARACTERS)),
    audiences=st.lists(st.text(CHARACTERS), min_size=1, max_size=3),
    lifetime=st.integers(1, 86_400),
    now=st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - As it asks.
)
def test_a_token_is_what_joserfc_would_have_made(  # noqa: PLR0913, PLR0917 - All that a token says.
    alg: str, issuer: str, client_id: str, scope: list[str], audiences: list[str], lifetime: int, now: datetime
) -> None:
    key = key_of(alg)
    client = Client(client_id, "A", "client_secret", (), (), (), None)
    grant = AccessTokenGrant(tuple(scope), tuple(audiences), lifetime)
    ours = sign(AccessTokenIssuer(issuer, lambda: key, lambda: now), client, grant)["access_token"]
    found = joserfc_jwt.decode(ours, key.jwk, registry=REGISTRY)
    theirs = joserfc_jwt.encode(found.header, found.claims, key.jwk, registry=REGISTRY)
    assert ours.rpartition(".")[0] == theirs.rpartition(".")[0]
    if alg in {"RS256", "EdDSA"}:
        assert ours == theirs, "the same input has one signature"
    assert found.claims["sub"] == found.claims["client_id"] == client_id
    assert found.claims["exp"] - found.claims["iat"] == lifetime


def test_exactly_the_key_signs_whose_time_has_come(ring: Ring, clock: SettableClock) -> None:
    moments = {moment: set[str]() for moment in (RING_TIMES["next"] - timedelta(microseconds=1), RING_TIMES["next"])}
    for moment, kids in moments.items():
        clock.now = moment
        for _ in range(20):
            token = issue(ring, clock, AccessTokenGrant((), ("urn:a",), 60))
            kids |= {token.kid, str(parts(token)[0]["kid"])}
    assert list(moments.values()) == [{"current"}, {"next"}]


def test_without_a_key_that_may_sign_the_service_is_unavailable(ring: Ring, clock: SettableClock) -> None:
    clock.now = datetime(2024, 1, 1, tzinfo=UTC)
    with pytest.raises(ServiceUnavailable) as caught:
        issue(ring, clock, AccessTokenGrant((), ("urn:a",), 60))
    assert (caught.value.reason, int(caught.value.status_code)) == ("no_signing_key", 503)


def test_a_ring_that_cannot_be_read_makes_the_service_unavailable(clock: SettableClock) -> None:
    def broken() -> SigningKey:
        raise StartError("no ring")

    client = Client("an-id", "A", "client_secret", (), (), (), None)
    with pytest.raises(ServiceUnavailable):
        sign(AccessTokenIssuer(ISSUER, broken, clock), client, AccessTokenGrant((), ("urn:a",), 60))
