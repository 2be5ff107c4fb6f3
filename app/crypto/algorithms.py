"""Signature algorithms: RFC 7518 section 3.1 and RFC 8037. Pure.

Every verifier knows RS256. The others are smaller and sign faster, but some verifiers reject a JWKS with a key type
that they do not know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc.jwk import ECKey, OKPKey, RSAKey

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Jwk = RSAKey | ECKey | OKPKey
Signer = Callable[[bytes], bytes]

RSA_MIN_BITS = 2048
RSA_BITS = (RSA_MIN_BITS, 3072, 4096)
_PUBLIC_EXPONENT = 65537


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A signature algorithm.

    :param kind: a description of its keys.
    :param accepts: returns whether a private key is of that kind, whatever its strength.
    :param signer: returns the signing function of an accepted key: signing input of a JWS to signature (RFC 7518).
    :param verify: checks a signature with the public key; raises ``InvalidSignature``.
    """

    name: str
    kind: str
    accepts: Callable[[object], bool]
    generate: Callable[[int], PrivateKey]
    signer: Callable[[Any], Signer]
    verify: Callable[[Any, bytes, bytes], None]


def _is_rsa(key: object) -> bool:
    return isinstance(key, rsa.RSAPrivateKey)


_SHA256 = SHA256()
_ECDSA = ec.ECDSA(_SHA256)
_P256_BYTES = 32


def _sign_ecdsa(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """R and S, each as long as the curve's order: RFC 7518 section 3.4."""
    r, s = decode_dss_signature(key.sign(message, _ECDSA))
    return r.to_bytes(_P256_BYTES) + s.to_bytes(_P256_BYTES)


def _verify_ecdsa(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    if len(signature) != 2 * _P256_BYTES:
        raise InvalidSignature
    r, s = (int.from_bytes(half) for half in (signature[:_P256_BYTES], signature[_P256_BYTES:]))
    key.verify(encode_dss_signature(r, s), message, _ECDSA)


def _generate_rsa(bits: int) -> PrivateKey:
    return rsa.generate_private_key(_PUBLIC_EXPONENT, bits)


def _rsa(name: str, scheme: AsymmetricPadding) -> Algorithm:
    return Algorithm(
        name,
        "an RSA key",
        _is_rsa,
        _generate_rsa,
        lambda key: partial(key.sign, padding=scheme, algorithm=_SHA256),
        lambda key, signature, text: key.verify(signature, text, scheme, _SHA256),
    )


ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        _rsa("RS256", padding.PKCS1v15()),
        _rsa("PS256", padding.PSS(padding.MGF1(_SHA256), padding.PSS.DIGEST_LENGTH)),
        Algorithm(
            "ES256",
            "an EC key on the curve P-256",
            lambda key: isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1),
            lambda _: ec.generate_private_key(ec.SECP256R1()),
            lambda key: partial(_sign_ecdsa, key),
            _verify_ecdsa,
        ),
        Algorithm(
            "EdDSA",
            "an Ed25519 key",
            lambda key: isinstance(key, ed25519.Ed25519PrivateKey),
            lambda _: ed25519.Ed25519PrivateKey.generate(),
            lambda key: key.sign,
            lambda key, signature, text: key.verify(signature, text),
        ),
    )
}


def check_private_key(alg: str, key: object) -> PrivateKey:
    """Return ``key`` if it can sign with ``alg``.

    :raises ValueError: it is of another kind, or weak; what it must be.
    """
    algorithm = ALGORITHMS[alg]
    if not algorithm.accepts(key):
        raise ValueError(f"must hold {algorithm.kind} for {alg}")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < RSA_MIN_BITS:
        raise ValueError(f"has {key.key_size} bits; an RSA key needs {RSA_MIN_BITS} or more")
    assert isinstance(key, PrivateKey)  # noqa: S101 - The algorithm accepts it.
    return key


def to_jwk(key: PrivateKey) -> Jwk:
    """Return ``key`` as a joserfc object, for its public members and its thumbprint."""
    if isinstance(key, rsa.RSAPrivateKey):
        return RSAKey(key, key, {})
    return ECKey(key, key, {}) if isinstance(key, ec.EllipticCurvePrivateKey) else OKPKey(key, key, {})


def size_in_bits(key: PrivateKey) -> int:
    """Return the length of the modulus, or of the curve's order."""
    return 256 if isinstance(key, ed25519.Ed25519PrivateKey) else key.key_size
