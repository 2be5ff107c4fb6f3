"""The key ring of this process: read once, at first use or at the start's check."""

import threading

from app.keyring.file import FileKeyring
from app.keyring.ring import Ring


class CurrentRing:
    """Holds the ring that this process signs and publishes with."""

    def __init__(self, home: FileKeyring) -> None:
        self.home = home
        self._lock = threading.Lock()
        self._ring: Ring | None = None

    def __call__(self) -> Ring:
        """Return the ring, read now if it has not been.

        :raises StartError: it cannot be read.
        """
        with self._lock:
            if self._ring is None:
                self._ring = self.home.read()
            return self._ring
