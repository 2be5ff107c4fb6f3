"""Opens the backend that a setting names."""

from pathlib import Path

from sqlalchemy.engine import Engine

from app.config.settings import Settings
from app.config.values import KEYRING_IN_ENVIRONMENT
from app.crypto.encryption import Encrypter
from app.keyring.backends.base import KeyringBackend
from app.keyring.backends.database import DatabaseKeyring
from app.keyring.backends.environment import StaticKeyring
from app.keyring.backends.file import FileKeyring


def open_backend(place: Path | str, settings: Settings, engine: Engine) -> KeyringBackend:
    """Open the backend at ``place``, a value of ``TOKENHOUSE_KEYRING``. Nothing is read yet."""
    passphrase = settings.keyring_passphrase.get_secret_value() if settings.keyring_passphrase else None
    if isinstance(place, Path):
        return FileKeyring(place, passphrase, signing_alg=settings.signing_alg)
    if place.startswith(KEYRING_IN_ENVIRONMENT):
        variable = place.removeprefix(KEYRING_IN_ENVIRONMENT)
        return StaticKeyring(variable, passphrase, signing_alg=settings.signing_alg)
    return DatabaseKeyring(engine, Encrypter(settings.encryption_keys), signing_alg=settings.signing_alg)
