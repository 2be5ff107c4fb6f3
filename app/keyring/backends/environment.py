"""A key ring in an environment variable, which is read-only: for a function, a job, a test.

The variable holds the TOML of ``config/keyring.example.toml``, with each private key's PEM in place of a file name.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from app.config.settings import Settings
from app.config.values import KEYRING_IN_ENVIRONMENT
from app.crypto.algorithms import PrivateKey
from app.errors import ManagementError, StartError
from app.keyring.backends.base import Change, passphrase_of
from app.keyring.model import Ring, SigningKey
from app.keyring.serialization import check_table, parse_entry, parse_pem, written_at


class EnvironmentKeyring:
    """The key ring of a process that gets it in its environment."""

    is_shared = True
    propagation_seconds = 300
    """It changes with a deployment."""

    def __init__(self, variable: str, passphrase: str | None = None, *, signing_alg: str = "RS256") -> None:
        self.name = f"the key ring in ${variable}"
        self._variable = variable
        self._passphrase = passphrase.encode() if passphrase else None
        self.signing_alg = signing_alg

    @staticmethod
    def accepts(location: Path | str) -> bool:
        """Return whether ``location`` is ``env:NAME``."""
        return isinstance(location, str) and location.startswith(KEYRING_IN_ENVIRONMENT)

    @classmethod
    def open(cls, location: Path | str, settings: Settings, _engine: Engine) -> "EnvironmentKeyring":
        """Open the ring in the variable. Nothing is read yet."""
        variable = str(location).removeprefix(KEYRING_IN_ENVIRONMENT)
        return cls(variable, passphrase_of(settings), signing_alg=settings.signing_alg)

    def version(self) -> object:
        """Return a constant: the variable never changes."""
        return self._variable

    def read(self) -> Ring:
        """Parse the variable.

        :raises StartError: one line that says what is wrong in it. Never quotes it.
        """
        document = self._document()
        entries = check_table(document, self.name)
        keys = tuple(
            self._parse(entry, f"key {number} of {self.name}") for number, entry in enumerate(entries, start=1)
        )
        if not keys:
            raise StartError(f"{self.name} has no keys")
        return Ring(keys, self.signing_alg, written_at(document, self.name))

    def is_empty(self) -> bool:
        """Return whether it has no keys."""
        return not check_table(self._document(), self.name)

    def leftovers(self) -> list[str]:
        """Return the name of the variable."""
        return [f"the variable {self._variable}"]

    def change(self, change: Change) -> Ring:  # noqa: ARG002 - Nothing changes it.
        """Refuse: it is read-only.

        :raises ManagementError: always.
        """
        raise ManagementError(f"{self.name} is static: change the variable and restart, or keep the ring in a file")

    def _document(self) -> dict[str, Any]:
        try:
            return tomllib.loads(os.environ.get(self._variable, ""))
        except tomllib.TOMLDecodeError:
            # The parser's message could quote a private key.
            raise StartError(f"{self.name} is not TOML") from None

    def _parse(self, entry: dict[str, Any], where: str) -> SigningKey:
        def load(pem: object, alg: str) -> PrivateKey:
            if not isinstance(pem, str) or not pem.isascii():
                raise StartError(f"{where}: private_key must be a private key in PEM")
            return parse_pem(pem.encode(), self._passphrase, alg, where, "private_key")

        return parse_entry(entry, where, load)
