"""Encrypts data that must be decrypted again: AES-256-GCM (NIST SP 800-38D) with keys of the settings. Pure.

The id of the key is stored beside each ciphertext, so that keys rotate: the first encrypts, all decrypt.
"""

import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.config.values import IdentifiedKey

NONCE_BYTES = 12
KEY_BYTES = 32
_INFO = "tokenhouse encryption 1"


class DecryptionError(Exception):
    """A ciphertext cannot be decrypted: its key has left the settings, or it was not encrypted here."""


class Encrypter:
    """Encrypts with the first key and decrypts with all.

    :param keys: any random text; the encryption keys are derived from it with HKDF-SHA-256 (RFC 5869).
    """

    def __init__(self, keys: Sequence[IdentifiedKey]) -> None:
        self._ciphers = {key.id: AESGCM(derive_key(key.value.get_secret_value(), _INFO)) for key in keys}
        self.newest_key_id = keys[0].id if keys else None

    def encrypt(self, clear: bytes, *, bound_to: str) -> tuple[str, bytes]:
        """Encrypt ``clear``.

        :param bound_to: what it belongs to; it can be decrypted for that alone, so ciphertexts cannot be exchanged.
        :returns: the key's id, and nonce and ciphertext in one.
        :raises DecryptionError: no key is set.
        """
        if self.newest_key_id is None:
            raise DecryptionError("TOKENHOUSE_ENCRYPTION_KEYS is not set")
        nonce = secrets.token_bytes(NONCE_BYTES)
        cipher = self._ciphers[self.newest_key_id]
        return self.newest_key_id, nonce + cipher.encrypt(nonce, clear, bound_to.encode())

    def decrypt(self, key_id: str, encrypted: bytes, *, bound_to: str) -> bytes:
        """Decrypt what :meth:`encrypt` returned.

        :raises DecryptionError: why it cannot be decrypted.
        """
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise DecryptionError(f"the key {key_id!r} is not in TOKENHOUSE_ENCRYPTION_KEYS")
        try:
            return cipher.decrypt(encrypted[:NONCE_BYTES], encrypted[NONCE_BYTES:], bound_to.encode())
        except (InvalidTag, ValueError):
            raise DecryptionError(f"the key {key_id!r} of TOKENHOUSE_ENCRYPTION_KEYS does not decrypt it") from None


def derive_key(secret: str, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose: HKDF-SHA-256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(secret.encode())
