"""Encrypted secrets: those that verify a MAC, which a digest cannot. Each is bound to its client and its id.

Which secrets are stored so is decided by the client's authentication method.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from app.config.values import IdentifiedKey
from app.crypto.encryption import DecryptionError, Encrypter
from app.errors import ManagementError

ENCRYPTED_SECRET_MIN_CHARACTERS = 32
"""A key for HS256 is not shorter than its hash: RFC 7518 section 3.2."""

_DUMMY_BINDING = "nobody"


class EncryptedSecrets:
    """Encrypts and decrypts secrets with ``TOKENHOUSE_ENCRYPTION_KEYS``.

    :param keys: the first encrypts, all decrypt.
    """

    def __init__(self, keys: Sequence[IdentifiedKey]) -> None:
        self._encrypter = Encrypter(keys)
        self.key_ids = tuple(key.id for key in keys)
        # Decrypted if there is no secret, so that an unknown client costs the same. Random: nobody has it.
        self._dummy = secrets.token_urlsafe(32)
        self._encrypted_dummy = self._encrypter.encrypt(self._dummy.encode(), bound_to=_DUMMY_BINDING) if keys else None

    @property
    def newest_key_id(self) -> str | None:
        """The id of the key that encrypts."""
        return self._encrypter.newest_key_id

    def encrypt(self, client_id: str, secret_id: str, secret: str) -> tuple[str, bytes]:
        """Encrypt for storage.

        :returns: the id of the encryption key, and the ciphertext.
        :raises ManagementError: there is no key, or the secret is too short for a MAC. Never quotes it.
        """
        if len(secret) < ENCRYPTED_SECRET_MIN_CHARACTERS:
            raise ManagementError(
                f"the secret must be {ENCRYPTED_SECRET_MIN_CHARACTERS} characters or more, being a key for HS256"
            )
        try:
            return self._encrypter.encrypt(secret.encode(), bound_to=_bound_to(client_id, secret_id))
        except DecryptionError as error:
            raise ManagementError(f"{error}: a secret that signs is kept encrypted, see docs/settings.md") from None

    def decrypt(self, client_id: str, secret: Any) -> str:
        """Decrypt the secret of a row.

        :raises DecryptionError: why it cannot be decrypted.
        """
        bound_to = _bound_to(client_id, secret.secret_id)
        return self._encrypter.decrypt(secret.encryption_key_id, secret.encrypted, bound_to=bound_to).decode()

    def decrypt_or_dummy(self, client_id: str, secret: Any) -> tuple[str, bool]:
        """Return a row's secret and true, or a dummy and false. Both cost the same."""
        if secret.encrypted is not None:
            try:
                return self.decrypt(client_id, secret), True
            except DecryptionError:
                return self._dummy, False
        if self._encrypted_dummy:
            self._encrypter.decrypt(*self._encrypted_dummy, bound_to=_DUMMY_BINDING)
        return self._dummy, False


def _bound_to(client_id: str, secret_id: str) -> str:
    return f"client secret {secret_id} of {client_id}"
