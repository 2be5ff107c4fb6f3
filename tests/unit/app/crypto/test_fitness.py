"""A public key that anybody can sign for, or that makes each check slow, is not fit."""

from base64 import urlsafe_b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey, RSAKey

from app.crypto.fitness import _small_order, find_weakness
from app.crypto.jwk import verifies
from app.crypto.key_set import check_jwks
from app.errors import ManagementError

RSA = RSAKey.generate_key(2048).as_dict(private=False)
EC = ECKey.generate_key("P-256").as_dict(private=False)
ED = OKPKey.generate_key("Ed25519").as_dict(private=False)
P = 2**255 - 19


def encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int, length: int | None = None) -> str:
    return encoded(value.to_bytes(length or (value.bit_length() + 7) // 8))


def modulus(key: dict[str, Any] = RSA) -> int:
    return rsa_numbers(key).n


def rsa_numbers(key: dict[str, Any]) -> rsa.RSAPublicNumbers:
    public: Any = RSAKey.import_key(dict(key)).public_key
    numbers: rsa.RSAPublicNumbers = public.public_numbers()
    return numbers


def point(y: int, *, negative: bool = False) -> dict[str, Any]:
    return ED | {"x": encoded((y | (negative << 255)).to_bytes(32, "little"))}


@pytest.mark.parametrize("key", [RSA, EC, ED])
def test_generated_keys_are_fit(key: dict[str, Any]) -> None:
    assert find_weakness(key) is None
    assert check_jwks({"keys": [key]})["keys"]


@pytest.mark.parametrize("exponent", [1, 3, 17, 65535, 65536, 65538, 2**32, 2**32 + 1, 2**3070 + 1])
def test_other_exponents_are_not(exponent: int) -> None:
    assert find_weakness(RSA | {"e": number(exponent)}) == (
        "has an exponent that is not odd, or not from 65537 to 4294967295"
    )


@pytest.mark.parametrize("exponent", [65537, 65539, 2**32 - 1])
def test_these_exponents_are(exponent: int) -> None:
    assert find_weakness(RSA | {"e": number(exponent)}) is None


@pytest.mark.parametrize("factor", [2, 3, 7, 9973])
def test_a_modulus_with_a_small_factor_is_not(factor: int) -> None:
    weak = modulus() // factor * factor
    assert find_weakness(RSA | {"n": number(weak)}) == "has a modulus with small prime factors"


def test_a_smooth_modulus_is_not() -> None:
    """A product of small primes alone, which anybody can factor."""
    smooth = 1
    while smooth.bit_length() < 2048:
        smooth *= 9973
    assert find_weakness(RSA | {"n": number(smooth)}) == "has a modulus with small prime factors"


def test_the_points_of_small_order_are_eight() -> None:
    # The y of 0, 4 and twice two points are the same for both signs.
    assert len(_small_order()) == 5
    assert {1, P - 1, 0} < _small_order()


def test_points_of_small_order_are_not() -> None:
    for y in _small_order():
        for negative in (False, True):
            weakness = find_weakness(point(y, negative=negative))
            assert weakness in {"is a point of small order", "is a point in another than its canonical encoding"}


@pytest.mark.parametrize("y", range(P, 2**255))
def test_a_point_in_another_encoding_is_not(y: int) -> None:
    assert find_weakness(point(y)) == "is a point in another than its canonical encoding"


def test_a_forged_signature_of_a_small_point_is_refused_at_registration() -> None:
    """The signature (R = A, S = 0) of the identity holds for every message, and no private key made it."""
    identity = point(1)
    assert verifies({**identity, "kid": "x"}, "EdDSA", (1).to_bytes(32, "little") + bytes(32), b"any message")
    with pytest.raises(ManagementError, match="key 1 is a point of small order"):
        check_jwks({"keys": [identity]})


@pytest.mark.parametrize(
    ("key", "weakness"),
    [
        (RSA | {"n": number(modulus(), 257)}, "has an n or e with a leading zero octet"),
        (RSA | {"e": "AAEAAQ"}, "has an n or e with a leading zero octet"),
        (RSA | {"n": RSA["n"] + "=="}, "has a n that is not in canonical base64url"),
        (RSA | {"e": "AQA\nB"}, "has a e that is not in canonical base64url"),
        (ED | {"x": encoded(bytes(33))}, "has a x that is not 32 bytes long"),
        (EC | {"y": number(1)}, "has a y that is not 32 bytes long"),
        (EC | {"x": number(1, 33)}, "has a x that is not 32 bytes long"),
    ],
    ids=map(str, range(7)),
)
def test_another_spelling_is_not(key: dict[str, Any], weakness: str) -> None:
    """Its thumbprint would be another than that of the same key."""
    assert find_weakness(key) == weakness


def test_a_stored_key_with_a_slow_exponent_verifies_nothing() -> None:
    slow = {**RSA, "e": number(2**3070 + 1), "kid": "x"}
    assert not verifies(slow, "RS256", bytes(256), b"x")


@given(st.binary(max_size=40), st.sampled_from(["OKP", "EC", "RSA"]))
def test_any_bytes_have_an_answer(raw: bytes, kty: str) -> None:
    key = {"kty": kty, "x": encoded(raw), "y": encoded(raw), "n": encoded(raw), "e": "AQAB"}
    assert find_weakness(key) is None or isinstance(find_weakness(key), str)
