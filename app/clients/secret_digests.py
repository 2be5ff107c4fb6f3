"""Generates client secrets and digests them. Pure; where digests are stored is left to ``secrets``.

A secret of 256 random bits needs no slow hash: a keyed digest (HMAC-SHA-256) is as strong, and its key, the pepper,
is not in the database. The digest covers the client id too, so that equal secrets do not show and a digest cannot be
moved to another client.
"""

import hashlib
import hmac
import secrets
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence

from app.config.values import IdentifiedKey
from app.types import SECRET_PREFIX, Credentials

SECRET_RANDOM_BYTES = 32
IMPORTED_SECRET_MIN_CHARACTERS = 16
IMPORTED_SECRET_SAFE_CHARACTERS = 32
IMPORTED_SECRET_MAX_CHARACTERS = 4096
"""A header field holds 8190 bytes, and base64 turns three bytes into four."""


def generate_secret() -> str:
    """Generate a secret: ``ths_``, 256 random bits, and a checksum by which scanners recognize it."""
    body = SECRET_PREFIX + secrets.token_urlsafe(SECRET_RANDOM_BYTES)
    return body + checksum(body)


def checksum(body: str) -> str:
    """Return the CRC-32 of ``body`` in six characters of base64url."""
    return urlsafe_b64encode(zlib.crc32(body.encode()).to_bytes(4)).rstrip(b"=").decode()


def is_vschar(text: str) -> bool:
    """Return whether ``text`` has only the characters of ids and secrets, %x20-7E: RFC 6749 appendix A.1 and A.2."""
    return text.isascii() and text.isprintable()


class SecretDigester:
    """Digests with all peppers of the settings; the first is for new secrets."""

    def __init__(self, peppers: Sequence[IdentifiedKey]) -> None:
        self._keys = {pepper.id: pepper.value.get_secret_value().encode() for pepper in peppers}
        self.newest_pepper_id = peppers[0].id

    @property
    def pepper_ids(self) -> tuple[str, ...]:
        """The ids of all peppers, the newest first."""
        return tuple(self._keys)

    def digest(self, credentials: Credentials) -> tuple[str, bytes]:
        """Digest for storage; return the newest pepper's id and 32 bytes."""
        return self.newest_pepper_id, self.digest_with_all(credentials)[self.newest_pepper_id]

    def digest_with_all(self, credentials: Credentials) -> Mapping[str, bytes]:
        """Return 32 bytes by pepper id, to compare with stored digests. The work is the same for every client."""
        message = f"{credentials.client_id}\0{credentials.secret}".encode()
        return {pepper_id: hmac.digest(key, message, hashlib.sha256) for pepper_id, key in self._keys.items()}
