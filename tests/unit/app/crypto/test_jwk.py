"""A client's keys: public ones alone, of kinds that we verify with, each with an id."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey
from support.assertions import signer

from app.crypto.jwk import matching, verifies
from app.crypto.key_set import MOST_KEYS, check_jwks
from app.errors import ManagementError

SHORT = base64.urlsafe_b64encode((2**1023 + 1).to_bytes(128)).rstrip(b"=").decode()
ALGS_OF = {"RSA": ["RS256", "PS256"], "EC": ["ES256"], "OKP": ["EdDSA"]}
RSA, EC, ED = signer("RS256"), signer("ES256"), signer("EdDSA")


def refusal(document: object) -> str:
    with pytest.raises(ManagementError) as caught:
        check_jwks(document)
    return str(caught.value)


def one(**changes: Any) -> dict[str, Any]:
    key = RSA.jwk | changes
    return {"keys": [{name: value for name, value in key.items() if value is not None}]}


def test_each_kind_is_kept_with_its_thumbprint_and_nothing_else() -> None:
    given_keys = [s.jwk | {"use": "sig", "key_ops": ["verify"], "x5c": ["x"], "exp": 1} for s in (RSA, EC, ED)]
    for key in given_keys:
        key.pop("kid", None)
    checked = check_jwks({"keys": given_keys, "more": 1})
    assert [key["kid"] for key in checked["keys"]] == [s.kid for s in (RSA, EC, ED)]
    assert {name for key in checked["keys"] for name in key} == {"kty", "kid", "n", "e", "crv", "x", "y"}
    for alg, key in (("RS256", RSA), ("PS256", RSA), ("ES256", EC), ("EdDSA", ED)):
        assert [found["kid"] for found in matching(checked["keys"], alg, None)] == [key.kid]
    assert check_jwks(checked) == checked


def test_a_key_of_one_algorithm_verifies_no_other() -> None:
    keys = check_jwks(one(alg="PS256", kid="a"))["keys"]
    assert [matching(keys, "PS256", kid) for kid in ("a", None)] == [keys, keys]
    assert [matching(keys, alg, kid) for alg, kid in (("RS256", "a"), ("PS256", "b"), ("PS256", ["a"]))] == [[]] * 3


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
def test_a_signature_is_verified_by_its_key_alone(alg: str) -> None:
    mine, other = signer(alg), signer(alg)
    keys = check_jwks({"keys": [mine.jwk, other.jwk]})["keys"]
    signed, _, signature = mine.sign({"sub": "a"}).rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    assert [verifies(key, alg, raw, signed.encode()) for key in keys] == [True, False]
    for wrong in (b"", b"x", raw[:-1], raw + b"x", bytes(len(raw)), raw[::-1]):
        assert not verifies(keys[0], alg, wrong, signed.encode())
    assert not verifies(keys[0], alg, raw, signed.encode() + b"x")


REFUSED = [
    (None, 'the key set must be a JSON object with "keys", a list of objects'),
    ([], 'the key set must be a JSON object with "keys", a list of objects'),
    ({}, 'the key set must be a JSON object with "keys", a list of objects'),
    ({"keys": {}}, 'the key set must be a JSON object with "keys", a list of objects'),
    ({"keys": ["x"]}, "key 1 is no JSON object"),
    ({"keys": [RSA.jwk, None]}, "key 2 is no JSON object"),
    ({"keys": []}, "the key set must hold 1 to 100 keys"),
    ({"keys": [RSA.jwk] * 101}, "the key set must hold 1 to 100 keys"),
    (
        {"keys": [ED.jwk | {"kid": str(number)} for number in range(MOST_KEYS + 1)]},
        "the key set holds 17 keys that can be used, and 16 is the most",
    ),
    ({"keys": [RSA.key.as_dict(private=True)]}, "key 1 is private (d, p, q, dp, dq, qi): register"),
    ({"keys": [EC.key.as_dict(private=True)]}, "key 1 is private (d): register its public half only"),
    ({"keys": [OctKey.generate_key(256).as_dict(private=True)]}, "key 1 is private (k): register"),
    (one(kty="oct"), "key 1: kty must be RSA, EC, OKP"),
    (one(kty=None), "key 1: kty must be RSA, EC, OKP"),
    (one(kty=["RSA"]), "key 1: kty must be RSA, EC, OKP"),
    (one(use="enc"), "key 1 is not for signatures (use, key_ops)"),
    (one() | {"keys": [RSA.jwk | {"key_ops": None}]}, "key 1 is not for signatures (use, key_ops)"),
    (one(key_ops="verify"), "key 1 is not for signatures (use, key_ops)"),
    (one(key_ops=["encrypt"]), "key 1 is not for signatures (use, key_ops)"),
    (one(alg="HS256"), "key 1: alg must be RS256 or PS256 for RSA, or be left out"),
    (one(alg="ES256"), "key 1: alg must be RS256 or PS256 for RSA, or be left out"),
    (one(n=None), "key 1 is no valid RSA key"),
    (one(n="***"), "key 1 is no valid RSA key"),
    (one(n=1), "key 1 is no valid RSA key"),
    ({"keys": [RSA.jwk | {"kid": "a", "use": "enc"}]}, "key 1 (a) is not for signatures (use, key_ops)"),
    (one(kid=1), "key 1: kid must be 1 to 255 printable characters"),
    (one(kid=""), "key 1: kid must be 1 to 255 printable characters"),
    (one(kid="a\n"), "key 1: kid must be 1 to 255 printable characters"),
    (one(n=SHORT), "key 1 has 1024 bits; an RSA key needs 2048"),
    (
        {"keys": [ECKey.generate_key("P-384").as_dict(private=False)]},
        "key 1 must be an RSA key, an EC key on P-256",
    ),
    (
        {"keys": [OKPKey.generate_key("X25519").as_dict(private=False)]},
        "key 1 must be an RSA key, an EC key on P-256",
    ),
]


# The keys are other ones in each process, so that no name is made of them.
@pytest.mark.parametrize(("document", "cause"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_anything_else_is_refused_with_what_is_allowed(document: object, cause: str) -> None:
    assert refusal(document).startswith(cause)


@given(
    st.dictionaries(
        st.sampled_from(["kty", "n", "e", "crv", "x", "y", "kid", "alg", "use", "key_ops"]),
        st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", RSA.jwk["n"], EC.jwk["x"], "sig"])
        | st.none()
        | st.integers()
        | st.text(max_size=5)
        | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_a_key_of_any_shape_is_read_or_refused(key: dict[str, Any]) -> None:
    try:
        checked = check_jwks({"keys": [key]})
    except ManagementError:
        return
    assert not any(verifies(one, alg, b"x", b"y") for one in checked["keys"] for alg in ALGS_OF[one["kty"]])
