"""A token is good if it is ours, whole and in time; of any other, every fault is told and nothing is raised."""

import base64
import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
import pytest
from conftest import SettableClock
from hypothesis import given
from hypothesis import strategies as st

from app.crypto.algorithms import ALGORITHMS
from app.keyring.model import RETIRE_AFTER, Ring, SigningKey
from app.tokens.issuer import AccessTokenIssuer
from app.tokens.validation import MAX_CHARACTERS, TokenValidation, validate_token
from app.types import Client

ISSUER = "https://tokens.example.com"
CLIENT = Client("an-id", "A", "client_secret", (), (), (), None)
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@cache
def key(alg: str, kid: str = "", **times: Any) -> SigningKey:
    return SigningKey(
        kid or f"kid-{alg}", alg, BEGINNING, BEGINNING, times.get("revoked_at"), ALGORITHMS[alg].generate(2048)
    )


RING = Ring(tuple(key(alg) for alg in ALGORITHMS))


def token(alg: str = "RS256", lifetime: int = 600, issuer: str = ISSUER, scope: tuple[str, ...] = ("read",)) -> str:
    generate = AccessTokenIssuer(issuer, lambda: key(alg), lambda: NOON)
    found = generate(client=CLIENT, scope=" ".join(scope) or None, expires_in=lifetime, audiences=("urn:a",))
    return str(found["access_token"])


def poll(unverified: str, now: datetime = NOON, ring: Ring = RING) -> TokenValidation:
    return validate_token(unverified, ISSUER, ring, now)


def reasons(unverified: str, now: datetime = NOON, ring: Ring = RING) -> list[str]:
    return [problem.reason for problem in poll(unverified, now, ring).problems]


def encode(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def forged(header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None, alg: str = "RS256") -> str:
    """A token with these changes, signed all the same; a member that is ``None`` is left out."""
    parts = [json.loads(base64.urlsafe_b64decode(part + "==")) for part in token(alg).split(".")[:2]]
    changed = [
        {name: value for name, value in {**part, **(change or {})}.items() if value is not None}
        for part, change in zip(parts, (header, claims), strict=True)
    ]
    signed = ".".join(map(encode, changed))
    return f"{signed}.{base64.urlsafe_b64encode(key(alg).sign(signed.encode())).decode().rstrip('=')}"


def test_a_token_that_is_too_long_is_not_called_malformed() -> None:
    filled = "x" * (MAX_CHARACTERS - 4)
    assert reasons(f"x.{filled}.x") == ["malformed_token"]
    (problem,) = poll(f"x.{filled}.xx").problems
    assert problem.message == f"The token is longer than any that this server issues: {MAX_CHARACTERS + 1} characters."


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_what_we_issue_is_good_until_it_ends(alg: str) -> None:
    ours = token(alg)
    found = poll(ours)
    assert found.is_good
    assert (found.unverified_header or {})["kid"] == f"kid-{alg}"
    assert (found.unverified_claims or {})["client_id"] == "an-id"
    assert reasons(ours, NOON + timedelta(seconds=599)) == []
    assert reasons(ours, NOON + timedelta(seconds=600)) == ["expired"]
    # The clock of another machine may be a minute ahead.
    assert reasons(ours, NOON - timedelta(seconds=60)) == []
    assert reasons(ours, NOON - timedelta(seconds=61)) == ["not_yet"]


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_change_of_any_part_is_found(alg: str) -> None:
    header, claims, signature = token(alg).split(".")
    other_claims = token(alg, scope=("admin",)).split(".")[1]
    assert reasons(f"{header}.{other_claims}.{signature}") == ["wrong_signature"]
    for place in (0, len(signature) // 2):
        changed = "A" if signature[place] != "A" else "B"
        assert reasons(f"{header}.{claims}.{signature[:place]}{changed}{signature[place + 1 :]}") == ["wrong_signature"]
    assert reasons(f"{header}.{claims}.") == ["wrong_signature"]
    assert reasons(f"{header}.{claims}.{signature[:-8]}") == ["wrong_signature"]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"alg": "none"}, "other_algorithm"),
        ({"alg": "HS256"}, "other_algorithm"),
        ({"alg": "PS256"}, "other_algorithm"),
        ({"alg": None}, "other_algorithm"),
        ({"kid": "another"}, "unknown_key"),
        ({"kid": None}, "unknown_key"),
        ({"kid": ["kid-RS256"]}, "unknown_key"),
        ({"kid": "kid-ES256"}, "other_algorithm"),
        ({"typ": "JWT"}, "other_type"),
        ({"typ": None}, "other_type"),
        ({"typ": "application/jwt"}, "other_type"),
        ({"typ": ["at+jwt"]}, "other_type"),
        ({"crit": ["exp"]}, "critical_header"),
    ],
)
def test_a_header_that_is_not_ours(header: dict[str, Any], reason: str) -> None:
    assert reasons(forged(header)) == [reason]


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "Application/At+Jwt"])
def test_a_type_is_a_media_type(typ: str) -> None:
    assert reasons(forged({"typ": typ})) == []


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"iss": "https://other.example"}, ["other_issuer"]),
        ({"iss": f"{ISSUER}/"}, ["other_issuer"]),
        ({"iss": None}, ["missing_claim"]),
        ({"iss": [ISSUER]}, ["missing_claim"]),
        ({"exp": None}, ["missing_claim"]),
        ({"exp": "9999999999"}, ["missing_claim"]),
        ({"exp": 9999999999.5}, ["missing_claim"]),
        ({"exp": True}, ["missing_claim"]),
        ({"exp": 0}, ["expired"]),
        ({"exp": -(10**30)}, ["expired"]),
        ({"exp": 10**30}, []),
        ({"aud": None}, ["missing_claim"]),
        ({"aud": []}, ["missing_claim"]),
        ({"aud": ["a", 1]}, ["missing_claim"]),
        ({"aud": ["a", "b"]}, []),
        ({"sub": None, "client_id": 1}, ["missing_claim"]),
        ({"iss": "x", "exp": 1, "aud": 1}, ["missing_claim", "other_issuer", "expired"]),
    ],
)
def test_claims_that_are_not_ours(claims: dict[str, Any], message: list[str]) -> None:
    assert reasons(forged(claims=claims)) == message


def test_a_key_that_was_revoked_or_has_gone_is_told(clock: SettableClock) -> None:
    old = key("RS256")
    revoked = SigningKey(old.kid, old.alg, old.published_at, old.signs_from, NOON, old.private_key)
    assert reasons(token(), NOON, Ring((revoked,))) == ["revoked_key"]
    later = SigningKey("later", "RS256", BEGINNING, NOON, None, key("RS256", "later").private_key)
    assert reasons(token(), clock(), Ring((old, later))) == []
    assert reasons(token(), NOON + RETIRE_AFTER, Ring((old, later))) == ["key_gone", "expired"]


@pytest.mark.parametrize(
    "text",
    ["", "a", "a.b", "a.b.c.d", ".", "..", "a..c", " a.b.c", "a.b.c\n", "é.b.c", "a=.b.c", "a.b.c=", "a" * 16_000],
)
def test_what_is_no_token_is_told(text: str) -> None:
    found = poll(text)
    assert [problem.reason for problem in found.problems] == ["malformed_token"]
    assert (found.unverified_header, found.unverified_claims) == (None, None)


@pytest.mark.parametrize("part", ["1", "null", '"a"', "[]", "{", "\u00ff", "[" * 5000, '{"a": NaN'])
def test_parts_that_are_no_objects_are_told(part: str) -> None:
    encoded = base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
    assert reasons(f"{encoded}.{token().split('.')[1]}.abcd") == ["malformed_token"]
    assert reasons(f"{token().split('.')[0]}.{encoded}.abcd") == ["malformed_token"]


texts = st.text(st.characters(codec="utf-8"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)
members = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "iss", "sub", "aud", "exp", "iat", "jti", "client_id"]), json_values
)


@given(members, members)
def test_nothing_that_is_signed_by_nobody_is_good(header: dict[str, Any], claims: dict[str, Any]) -> None:
    assert not poll(f"{encode(header)}.{encode(claims)}.{encode('a signature')}").is_good


@given(members, members)
def test_what_is_good_is_good_for_a_strict_verifier_too(header: dict[str, Any], claims: dict[str, Any]) -> None:
    unverified = forged(header, claims)
    if poll(unverified).is_good:
        options = {"verify_aud": False, "verify_exp": False, "verify_iat": False, "require": ["iss", "exp", "iat"]}
        jwt.decode(unverified, key("RS256").public_key, algorithms=["RS256"], issuer=ISSUER, options=options)


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_whatever_it_is_nothing_is_raised(text: str) -> None:
    assert not poll(text).is_good


def test_no_sentence_quotes_the_token() -> None:
    pasted = "ths_a-secret"
    message = poll(forged({"typ": pasted, "alg": pasted, "kid": pasted}, {"iss": pasted, "aud": 1})).problems
    assert len(message) == 4
    assert not any(pasted in problem.message for problem in message)
