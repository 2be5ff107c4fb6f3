"""Reads key sets as others publish them: a JWK set, a single JWK (RFC 7517), or PEM. Pure.

A key that cannot be used here is skipped and named, since it may be for somebody else (section 5). A set with a
private key is refused whole.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc.jwk import ECKey, OKPKey, RSAKey

from app.crypto.jwk import Jwk, check_key, refuse_private
from app.errors import ManagementError

MOST_KEYS = 16
MOST_PUBLISHED = 100
"""Keys in a set; some may be for others."""
MOST_NAMED = 10
"""Skipped keys that are named."""
KID_SHOWN_CHARACTERS = 40

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_JWK_BY_KIND: tuple[tuple[type, Any], ...] = (
    (rsa.RSAPublicKey, RSAKey),
    (ec.EllipticCurvePublicKey, ECKey),
    (ed25519.Ed25519PublicKey, OKPKey),
)


class KeySet(NamedTuple):
    """The keys of a set that can be used here.

    :ivar jwks: a JWK set of checked public keys, each with a ``kid``.
    :ivar skipped: the other keys, each with the reason. Quotes no key.
    """

    jwks: dict[str, Any]
    skipped: tuple[str, ...] = ()


def read_key_set(raw: bytes) -> KeySet:
    """Read the public keys in a file or an HTTP response.

    :param raw: JSON or PEM in UTF-8. A byte order mark, text around PEM blocks, and certificates are accepted.
    :raises ManagementError: no key can be used, or one is private.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ManagementError("the key set is not UTF-8 text") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        entries: Sequence[object] = [_from_pem(block) for block in _PEM.finditer(text)]
        if not entries:
            raise ManagementError("this is no JWK set, no JWK and no public key in PEM") from None
    else:
        is_single = isinstance(document, dict) and "kty" in document and "keys" not in document
        entries = [document] if is_single else _listed(document)
    return _sort_out(entries)


def check_jwks(document: object) -> dict[str, Any]:
    """Check a JWK set that is to be registered, as :func:`read_key_set` does, but skip no key.

    :raises ManagementError: a key cannot be used; what is allowed. Quotes no key.
    """
    found = _sort_out(_listed(document))
    if found.skipped:
        raise ManagementError(found.skipped[0])
    return found.jwks


def _listed(document: object) -> list[object]:
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ManagementError('the key set must be a JSON object with "keys", a list of objects')
    return keys


def _sort_out(entries: Sequence[object]) -> KeySet:
    """Check each entry: a JWK, or the reason why there is none."""
    if not 1 <= len(entries) <= MOST_PUBLISHED:
        raise ManagementError(f"the key set must hold 1 to {MOST_PUBLISHED} keys")
    for which, entry in _named(entries):
        if isinstance(entry, Mapping):
            refuse_private(entry, which)
    usable: list[Jwk] = []
    skipped: list[str] = []
    for which, entry in _named(entries):
        try:
            key = check_key(entry, which) if isinstance(entry, Mapping) else _no_key(entry, which)
        except ManagementError as error:
            skipped.append(str(error))
        else:
            # The same key twice is one key.
            usable += [key] if key not in usable else []
    if not usable:
        more = [f"and {len(skipped) - MOST_NAMED} more"] if len(skipped) > MOST_NAMED else []
        reasons = "; ".join(skipped[:MOST_NAMED] + more)
        raise ManagementError(reasons if len(entries) == 1 else f"the key set holds no key that can be used: {reasons}")
    if len(usable) > MOST_KEYS:
        raise ManagementError(f"the key set holds {len(usable)} keys that can be used, and {MOST_KEYS} is the most")
    return KeySet({"keys": usable}, tuple(skipped[:MOST_NAMED]))


def _named(entries: Sequence[object]) -> Iterator[tuple[str, object]]:
    for number, entry in enumerate(entries, 1):
        kid = entry.get("kid") if isinstance(entry, Mapping) else None
        is_shown = isinstance(kid, str) and kid.isprintable() and len(kid) <= KID_SHOWN_CHARACTERS
        yield f"key {number} ({kid})" if is_shown and kid else f"key {number}", entry


def _no_key(entry: object, which: str) -> Jwk:
    raise ManagementError(f"{which} {entry if isinstance(entry, ManagementError) else 'is no JSON object'}")


def _from_pem(block: re.Match[str]) -> dict[str, Any] | ManagementError:
    """Return a public key as a JWK, or why the block holds none."""
    label, pem = block[1], block[0].encode()
    if "PRIVATE KEY" in label:
        raise ManagementError("the file holds a private key: register its public half only")
    try:
        if label == "CERTIFICATE":
            key: object = x509.load_pem_x509_certificate(pem).public_key()
        else:
            key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return ManagementError("is no valid public key in PEM")
    for kind, jwk in _JWK_BY_KIND:
        if isinstance(key, kind):
            return dict(jwk(key, key, {}).as_dict(private=False))
    return ManagementError("is of a kind that is not known here")
