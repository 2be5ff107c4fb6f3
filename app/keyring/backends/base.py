"""Where a key ring can live: what ``keyring.file``, ``keyring.database`` and ``keyring.static`` have in common."""

from collections.abc import Callable
from typing import Protocol

from app.keyring.model import Ring

Change = Callable[[Ring], Ring]
"""Makes the next ring of the present one, which may be empty."""


class KeyringBackend(Protocol):
    """A place that keeps one ring.

    All raise ``StartError`` for what is wrong with the ring, and ``ManagementError`` for a change that cannot be.
    """

    name: str
    """For messages: ``the key ring …``."""

    signing_alg: str
    """The algorithm that signs, for the rings that it reads."""

    @property
    def is_shared(self) -> bool:
        """Whether several machines may use it, each with a clock of its own."""
        ...

    @property
    def propagation_seconds(self) -> int:
        """How long a change takes at most until every worker knows it, unless a setting says otherwise."""
        ...

    def version(self) -> object:
        """Something that is another thing after each change."""
        ...

    def read(self) -> Ring:
        """The ring as it is kept now, with private keys."""
        ...

    def is_empty(self) -> bool:
        """Whether there is no key yet."""
        ...

    def change(self, change: Change) -> Ring:
        """Keep what ``change`` makes of the ring, alone and whole, and return it."""
        ...
