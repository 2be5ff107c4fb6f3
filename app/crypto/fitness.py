"""Whether a public key is fit to verify signatures. Pure.

A key may be well-formed and worthless: RSA with an exponent that makes each check slow, or with a modulus that anybody
can factor; an Ed25519 point of small order, for which signatures exist that no private key made (RFC 8032 section 8).
Members must be canonical, since a thumbprint (RFC 7638) is made from their text.
"""

from collections.abc import Mapping
from functools import cache
from math import gcd, prod
from typing import Any

from joserfc.util import urlsafe_b64decode

RSA_EXPONENTS = range(65537, 2**32)
"""The smallest that FIPS 186-5 section A.1.1 does not allow. A large exponent would make each verification slow."""

_SMALL_FACTORS_BELOW = 10_000
_COORDINATE_BYTES = 32

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_Point = tuple[int, int]


def find_weakness(key: Mapping[str, Any]) -> str | None:
    """Return why a well-formed key is not fit, as the end of a sentence; ``None`` if it is.

    :param key: a JWK of kind RSA, EC on P-256, or OKP on Ed25519.
    """
    names = {"RSA": ("n", "e"), "EC": ("x", "y"), "OKP": ("x",)}[key["kty"]]
    members = {}
    for name in names:
        try:
            members[name] = urlsafe_b64decode(key[name].encode())
        except ValueError:
            return f"has a {name} that is not in canonical base64url"
    if key["kty"] == "RSA":
        return _weakness_of_rsa(**members)
    for name, value in members.items():
        if len(value) != _COORDINATE_BYTES:
            return f"has a {name} that is not {_COORDINATE_BYTES} bytes long"
    return _weakness_of_ed25519(members["x"]) if key["kty"] == "OKP" else None


def is_slow_exponent(exponent: int) -> bool:
    """Return whether a check with this RSA exponent must not be made."""
    return exponent not in RSA_EXPONENTS or exponent % 2 == 0


def _weakness_of_rsa(n: bytes, e: bytes) -> str | None:
    if not (n[:1].strip(b"\0") and e[:1].strip(b"\0")):
        return "has an n or e with a leading zero octet"
    if is_slow_exponent(int.from_bytes(e)):
        return f"has an exponent that is not odd, or not from {RSA_EXPONENTS.start} to {RSA_EXPONENTS.stop - 1}"
    if gcd(int.from_bytes(n), _small_primes()) != 1:
        return "has a modulus with small prime factors"
    return None


def _weakness_of_ed25519(encoded: bytes) -> str | None:
    y = int.from_bytes(encoded, "little") & (2**255 - 1)
    if y >= _P or (y in {1, _P - 1} and encoded[-1] & 0x80):
        return "is a point in another than its canonical encoding"
    return "is a point of small order" if y in _small_order() else None


@cache
def _small_primes() -> int:
    """Return the product of all small primes."""
    sieve = bytearray([1]) * _SMALL_FACTORS_BELOW
    for number in range(2, int(_SMALL_FACTORS_BELOW**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, _SMALL_FACTORS_BELOW, number)))
    return prod(number for number in range(2, _SMALL_FACTORS_BELOW) if sieve[number])


@cache
def _small_order() -> frozenset[int]:
    """Return the y of the eight points of small order: multiples of a point from which the large order is removed."""
    identity = 0, 1
    for y in range(2, 100):
        point = _with_y(y)
        remainder = _times(_ORDER, point) if point else identity
        if _times(4, remainder) != identity:
            return frozenset(_times(factor, remainder)[1] for factor in range(8))
    raise AssertionError("one in two points has such a remainder")


def _with_y(y: int) -> _Point | None:
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if x * x % _P != square:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    return (x, y) if x * x % _P == square else None


def _plus(one: _Point, other: _Point) -> _Point:
    (x1, y1), (x2, y2) = one, other
    crossed = _D * x1 * x2 * y1 * y2 % _P
    x = (x1 * y2 + y1 * x2) * pow(1 + crossed, -1, _P)
    y = (y1 * y2 + x1 * x2) * pow(1 - crossed, -1, _P)
    return x % _P, y % _P


def _times(factor: int, point: _Point) -> _Point:
    found = 0, 1
    while factor:
        if factor & 1:
            found = _plus(found, point)
        point, factor = _plus(point, point), factor >> 1
    return found
