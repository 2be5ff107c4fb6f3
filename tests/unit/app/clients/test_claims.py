"""Claims by configuration: what operators may add to tokens, and what they may not."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clients.claims import CLAIMS_MAX_BYTES, REGISTERED_CLAIMS, check_claims, parse_claims
from app.errors import ManagementError

ISSUED = {"iss", "sub", "client_id", "aud", "iat", "exp", "jti", "scope", "cnf"}
INTROSPECTED = {"active", "token_type", "username", "nbf"}


def refusal(claims: dict[str, Any]) -> str:
    with pytest.raises(ManagementError) as caught:
        check_claims(claims)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given_claims", "parsed"),
    [
        (["tenant=acme"], {"tenant": "acme"}),
        (["tenant="], {"tenant": ""}),
        (["level=3", "on=true"], {"level": "3", "on": "true"}),
        (["path=a=b"], {"path": "a=b"}),
        (['roles=["reader", "writer"]'], {"roles": ["reader", "writer"]}),
        (['limits={"rows": 100, "raw": false}'], {"limits": {"rows": 100, "raw": False}}),
        (["https://example.com/tenant=Größe"], {"https://example.com/tenant": "Größe"}),
        (["", ""], {}),
    ],
)
def test_a_claim_is_text_or_json(given_claims: list[str], parsed: dict[str, Any]) -> None:
    assert parse_claims(given_claims) == parsed
    check_claims(parsed)


@pytest.mark.parametrize(
    ("given_claims", "told"),
    [
        (["tenant"], "--claim must be NAME=VALUE"),
        (["a=1", "a=2"], '--claim a is given twice: a=["a", "b"] is a list'),
        (["a=[1"], "--claim a: a value that begins with [ must be JSON"),
        (['a={"b": NaN}'], "--claim a: a value that begins with { must be JSON"),
        (["a=" + "[" * 2000], "--claim a: a value that begins with [ must be JSON"),
    ],
)
def test_a_malformed_claim_is_refused(given_claims: list[str], told: str) -> None:
    with pytest.raises(ManagementError) as caught:
        parse_claims(given_claims)
    assert str(caught.value) == told


@pytest.mark.parametrize("name", sorted(REGISTERED_CLAIMS))
def test_a_registered_name_is_refused(name: str) -> None:
    assert refusal({"tenant": "a", name: "x"}) == (f"{name!r} is a registered claim name: choose another name")


def test_registered_names_include_all_that_is_issued_and_introspected() -> None:
    assert ISSUED | INTROSPECTED <= REGISTERED_CLAIMS
    check_claims({"roles": ["a"], "groups": ["b"], "entitlements": ["c"]})


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a\\b", "é", "a\n", "x" * 101])
def test_a_name_is_printable_ascii(name: str) -> None:
    assert refusal({name: "x"}).startswith("the name of a claim must be 1 to 100 characters")


def test_one_byte_decides() -> None:
    fill = CLAIMS_MAX_BYTES - len(orjson.dumps({"a": "é"}))
    check_claims({"a": "é" + "x" * fill})
    assert refusal({"a": "é" + "x" * (fill + 1)}) == "all claims together must have at most 1024 bytes as JSON"


def test_deep_nesting_is_refused() -> None:
    value = parse_claims(["a=" + "[" * 300 + "]" * 300])
    assert refusal(value) == "the value of a claim must be text or JSON that is not nested deeply"


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4))
def test_what_is_accepted_replaces_nothing_and_fits(claims: dict[str, str]) -> None:
    try:
        check_claims(claims)
    except ManagementError:
        return
    assert not claims.keys() & ISSUED
    assert len(orjson.dumps(claims)) <= CLAIMS_MAX_BYTES
