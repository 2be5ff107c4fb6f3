"""The format of a ring, the same in every backend: the members of a key's entry, and the encoding of its private key.

``config/keyring.example.toml`` explains the members. Where entries are stored is left to ``backends``.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from app.crypto.algorithms import ALGORITHMS, PrivateKey, check_private_key, to_jwk
from app.errors import StartError
from app.keyring.model import Ring, SigningKey

_KID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_REQUIRED = {"kid", "alg", "private_key", "published_at", "signs_from"}
_OPTIONAL = {"signs_until", "revoked_at", "jwks_max_age", "unsafe"}
FIELDS = _REQUIRED | _OPTIONAL
_TIMES = ("published_at", "signs_from", "signs_until", "revoked_at")


def parse_entry(entry: Mapping[str, Any], where: str, load: Callable[[object, str], PrivateKey]) -> SigningKey:
    """Check and parse an entry.

    :param load: loads the private key from the value of ``private_key``, for an algorithm; called last.
    :raises StartError: one line that names what is wrong.
    """
    if missing := _REQUIRED - entry.keys():
        raise StartError(f"{where} lacks {', '.join(sorted(missing))}")
    if unknown := entry.keys() - FIELDS:
        raise StartError(f"{where} has the unknown {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(FIELDS))}")
    if not isinstance(entry["kid"], str) or not _KID.fullmatch(entry["kid"]):
        raise StartError(f"{where}: kid must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ -")
    if not isinstance(entry["alg"], str) or entry["alg"] not in ALGORITHMS:
        raise StartError(f"{where}: alg must be {', '.join(ALGORITHMS)}")
    times = {
        name: _time(entry[name], name, where)
        for name in ("published_at", "signs_from", "signs_until", "revoked_at")
        if name in entry
    }
    if times["signs_from"] < times["published_at"]:
        raise StartError(f"{where}: signs_from must not be before published_at")
    max_age = entry.get("jwks_max_age", 0)
    if not isinstance(max_age, int) or isinstance(max_age, bool) or max_age < 0:
        raise StartError(f"{where}: jwks_max_age must be whole seconds")
    if not isinstance(is_unsafe := entry.get("unsafe", False), bool):
        raise StartError(f"{where}: unsafe must be true or false")
    return SigningKey(
        entry["kid"],
        entry["alg"],
        times["published_at"],
        times["signs_from"],
        times.get("revoked_at"),
        load(entry["private_key"], entry["alg"]),
        times.get("signs_until"),
        max_age,
        is_unsafe,
    )


def to_entry(key: SigningKey) -> dict[str, Any]:
    """Return all members of ``key``'s entry except ``private_key``.

    Times are whole seconds in UTC; empty members are left out.
    """
    members = {
        "kid": key.kid,
        "alg": key.alg,
        "published_at": _whole(key.published_at),
        "signs_from": _whole(key.signs_from),
        "signs_until": _whole(key.signs_until),
        "revoked_at": _whole(key.revoked_at),
        "jwks_max_age": key.jwks_max_age or None,
        "unsafe": key.is_unsafe or None,
    }
    return {name: value for name, value in members.items() if value is not None}


def parse_pem(pem: bytes, passphrase: bytes | None, alg: str, where: str, what: str) -> PrivateKey:
    """Parse a private key: PKCS#8, PKCS#1 or SEC 1, possibly encrypted.

    :param what: where the key is, for the message.
    :raises StartError: the key cannot be parsed, is of another kind than ``alg``, or is weak. Never quotes it.
    """
    encrypted = b"ENCRYPTED" in pem
    try:
        key = serialization.load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        hint = " with TOKENHOUSE_KEYRING_PASSPHRASE" if encrypted else ""
        raise StartError(f"{where}: {what} cannot be parsed as a private key in PEM{hint}") from None
    try:
        return check_private_key(alg, key)
    except ValueError as error:
        raise StartError(f"{where}: {what} {error}") from None


def to_pem(key: PrivateKey, passphrase: bytes | None) -> bytes:
    """Encode ``key`` as PKCS#8 in PEM, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key: SigningKey) -> str:
    """Encode the public key of ``key`` in PEM (SubjectPublicKeyInfo)."""
    public = key.private_key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def new_key(alg: str, bits: int) -> tuple[str, PrivateKey]:
    """Generate a key; return its RFC 7638 thumbprint as kid, and the key."""
    private_key = ALGORITHMS[alg].generate(bits)
    return str(to_jwk(private_key).thumbprint()), private_key


def check_table(document: Mapping[str, Any], name: str) -> Sequence[dict[str, Any]]:
    """Return the entries of a parsed TOML document.

    :raises StartError: it is not the document of a ring.
    """
    entries = document.get("keys", [])
    extra = document.keys() - {"keys", "written_at"}
    if extra or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise StartError(f"{name} may hold written_at and [[keys]] tables only")
    return entries


def written_at(document: Mapping[str, Any], name: str) -> datetime | None:
    """Return when a command last wrote the ring.

    :raises StartError: ``written_at`` is not a time.
    """
    return _time(document["written_at"], "written_at", name) if "written_at" in document else None


def _time(value: object, name: str, where: str) -> datetime:
    try:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC)
    except OverflowError:
        # At the ends of the calendar the moment does not exist in UTC.
        pass
    raise StartError(f"{where}: {name} must be a date and time with a zone, such as 2026-01-31T12:00:00Z")


def _whole(time: datetime | None) -> datetime | None:
    return time.astimezone(UTC).replace(microsecond=0) if time else None


def dump_ring(ring: Ring) -> bytes:
    """Return ``ring`` with its private keys, for memory that nobody else reads."""
    content = {
        "written_at": ring.written_at.isoformat() if ring.written_at else None,
        "keys": [
            {name: value.isoformat() if name in _TIMES else value for name, value in to_entry(key).items()}
            | {"private_key": to_pem(key.private_key, None).decode()}
            for key in ring.keys
        ],
    }
    return json.dumps(content).encode()


def load_ring(content: bytes, signing_alg: str) -> Ring | None:
    """Return the ring of :func:`dump_ring`; ``None`` if another version has written it differently."""
    kept = json.loads(content)
    try:
        keys = tuple(_load_key(entry) for entry in kept["keys"])
    except StartError:
        return None
    return Ring(keys, signing_alg, datetime.fromisoformat(kept["written_at"]) if kept["written_at"] else None)


def _load_key(entry: dict[str, Any]) -> SigningKey:
    members = {name: datetime.fromisoformat(value) if name in _TIMES else value for name, value in entry.items()}
    where = "the last good key ring"
    return parse_entry(members, where, lambda pem, alg: parse_pem(str(pem).encode(), None, alg, where, "a key"))
