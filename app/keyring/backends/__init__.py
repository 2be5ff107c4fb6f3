"""The backends that can store a key ring; the first that accepts a location opens it."""

from app.keyring.backends.database import DatabaseKeyring
from app.keyring.backends.environment import EnvironmentKeyring
from app.keyring.backends.file import FileKeyring

BACKENDS = (EnvironmentKeyring, DatabaseKeyring, FileKeyring)
