"""Public keys of clients (RFC 7517): checked when they are registered or fetched, and used to verify. Pure."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry

from app.crypto.algorithms import ALGORITHMS, RSA_MIN_BITS
from app.crypto.certificates import thumbprint_of_x5c
from app.crypto.fitness import find_weakness, is_slow_exponent
from app.crypto.jws import decode
from app.errors import ManagementError

RSA_MOST_BITS = 4096
"""A longer key would make each request slower than necessary."""
KID_MAX_CHARACTERS = 255

_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_PUBLIC = ("kty", "n", "e", "crv", "x", "y")
_KINDS: Mapping[str, tuple[type, tuple[str, ...]]] = {
    "RSA": (rsa.RSAPublicKey, ("RS256", "PS256")),
    "EC": (ec.EllipticCurvePublicKey, ("ES256",)),
    "OKP": (ed25519.Ed25519PublicKey, ("EdDSA", "Ed25519")),
}
VERIFICATION_ALGORITHMS = {**ALGORITHMS, "Ed25519": ALGORITHMS["EdDSA"]}
"""Algorithms of clients' signatures by ``alg``. RFC 9864 section 2.2 renames EdDSA with an Ed25519 key to Ed25519."""
SIGNING_ALGS = tuple(VERIFICATION_ALGORITHMS)


Jwk = Mapping[str, Any]
"""A checked public key."""


def verifies(key: Jwk, alg: str, signature: bytes, signed: bytes) -> bool:
    """Return whether ``signature`` is that of ``key``.

    Loading the key takes some microseconds, so nothing is cached.
    """
    try:
        VERIFICATION_ALGORITHMS[alg].verify(_public_key(key), signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def signature_octets(key: Jwk) -> int | None:
    """Return how long the signatures of an RSA key are, in octets; ``None`` for a key of another kind."""
    return (_number(key["n"]).bit_length() + 7) // 8 if key["kty"] == "RSA" else None


def matching(keys: Iterable[Jwk], alg: str, kid: object) -> list[Jwk]:
    """Return the keys that may have made a signature of ``alg``: those with its ``kid``, or all if it names none.

    Several keys may have one ``kid``: RFC 7517 section 4.5.
    """
    return [
        key
        for key in keys
        if alg in _KINDS[key["kty"]][1]
        and VERIFICATION_ALGORITHMS[key.get("alg", alg)] is VERIFICATION_ALGORITHMS[alg]
        and (kid is None or kid == key["kid"])
    ]


def refuse_private(key: Mapping[str, Any], which: str) -> None:
    """Refuse a key with private members.

    :raises ManagementError: it has some. Quotes none.
    """
    if private := [name for name in _PRIVATE if name in key]:
        raise ManagementError(f"{which} is private ({', '.join(private)}): register its public half only")


def check_key(key: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Check a public key that is to be registered; :func:`refuse_private` comes first.

    :param which: its name in messages.
    :returns: the members that matter; a key without ``kid`` gets its thumbprint (RFC 7638).
    :raises ManagementError: what is wrong, and what is allowed. Quotes no key.
    """
    kty = key.get("kty")
    if not isinstance(kty, str) or kty not in _KINDS:
        raise ManagementError(f"{which}: kty must be {', '.join(_KINDS)}")
    operations = key.get("key_ops", ["verify"])
    if key.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise ManagementError(f"{which} is not for signatures (use, key_ops)")
    kind, algs = _KINDS[kty]
    if key.get("alg", algs[0]) not in algs:
        raise ManagementError(f"{which}: alg must be {' or '.join(algs)} for {kty}, or be left out")
    public = {name: key[name] for name in _PUBLIC if name in key}
    try:
        with warnings.catch_warnings(action="ignore"):
            # Weak keys are refused below.
            found = JWKRegistry.import_key(dict(public))
        number, thumbprint = found.public_key, found.thumbprint()
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise ManagementError(f"{which} is no valid {kty} key") from None
    if not isinstance(number, kind) or (
        isinstance(number, ec.EllipticCurvePublicKey) and number.curve.name != "secp256r1"
    ):
        raise ManagementError(f"{which} must be an RSA key, an EC key on P-256 or an Ed25519 key")
    if isinstance(number, rsa.RSAPublicKey) and not RSA_MIN_BITS <= number.key_size <= RSA_MOST_BITS:
        raise ManagementError(f"{which} has {number.key_size} bits; an RSA key needs {RSA_MIN_BITS} to {RSA_MOST_BITS}")
    if weakness := find_weakness(public):
        raise ManagementError(f"{which} {weakness}")
    if not _can_be_read(public):
        raise ManagementError(f"{which} is no valid {kty} key")
    kid = key.get("kid", thumbprint)
    if not isinstance(kid, str) or not 1 <= len(kid) <= KID_MAX_CHARACTERS or not kid.isprintable():
        raise ManagementError(f"{which}: kid must be 1 to {KID_MAX_CHARACTERS} printable characters")
    certified = thumbprint_of_x5c(key["x5c"], number) if "x5c" in key else key.get("x5t#S256")
    more = {"alg": key.get("alg"), "x5t#S256": certified if isinstance(certified, str) else None}
    return {**public, "kid": kid, **{name: value for name, value in more.items() if value is not None}}


def _can_be_read(key: Jwk) -> bool:
    """Return whether cryptography and joserfc read the same key."""
    try:
        _public_key(key)
    except ValueError:
        return False
    return True


def _public_key(key: Jwk) -> Any:
    """RFC 7518 section 6, RFC 8037 section 2."""
    if key["kty"] == "RSA":
        exponent = _number(key["e"])
        if is_slow_exponent(exponent):
            # Stored by a release that did not look.
            raise ValueError("a check with this exponent takes too long")
        return rsa.RSAPublicNumbers(exponent, _number(key["n"])).public_key()
    if key["kty"] == "EC":
        return ec.EllipticCurvePublicNumbers(_number(key["x"]), _number(key["y"]), ec.SECP256R1()).public_key()
    return ed25519.Ed25519PublicKey.from_public_bytes(decode(key["x"]) or b"")


def _number(text: str) -> int:
    return int.from_bytes(decode(text) or b"")
