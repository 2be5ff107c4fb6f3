"""The interface of a backend: what ``file``, ``database`` and ``environment`` have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from sqlalchemy.engine import Engine

from app.config.settings import Settings
from app.keyring.model import Ring

Change = Callable[[Ring], Ring]
"""Makes the next ring from the present one, which may be empty."""


class KeyringBackend(Protocol):
    """Stores one ring.

    All methods raise ``StartError`` for a fault in the ring and ``ManagementError`` for a change that is impossible.
    """

    name: str
    """For messages, such as ``the key ring in the database``."""

    signing_alg: str
    """The algorithm that signs in the rings that it reads."""

    @staticmethod
    def accepts(location: Path | str) -> bool:
        """Return whether ``location``, a value of ``TOKENHOUSE_KEYRING``, is one of this backend."""
        ...

    @classmethod
    def open(cls, location: Path | str, settings: Settings, engine: Engine, /) -> Self:
        """Open the ring at ``location``. Nothing is read yet."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether several machines may use it, each with its own clock."""
        ...

    @property
    def propagation_seconds(self) -> int:
        """How long a change takes at most to reach every worker, unless a setting says otherwise."""
        ...

    def version(self) -> object:
        """Return a value that differs after each change."""
        ...

    def read(self) -> Ring:
        """Return the ring as it is stored now, with private keys."""
        ...

    def is_empty(self) -> bool:
        """Return whether no key exists yet."""
        ...

    def leftovers(self) -> list[str]:
        """Return the names of the files or tables that hold private keys."""
        ...

    def change(self, change: Change) -> Ring:
        """Store what ``change`` makes of the ring, atomically and under a lock; return it."""
        ...


def passphrase_of(settings: Settings) -> str | None:
    """Return the passphrase of encrypted PEM files, if one is set."""
    return settings.keyring_passphrase.get_secret_value() if settings.keyring_passphrase else None
