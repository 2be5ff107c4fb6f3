"""Keys at times that a test chooses, which no command would write."""

from dataclasses import replace
from datetime import datetime, timedelta

from app.crypto.algorithms import RSA_MIN_BITS
from app.keyring.backends.base import KeyringBackend
from app.keyring.model import Ring, SigningKey
from app.keyring.serialization import new_key
from app.keyring.service import KeyringManager


def add_key(  # noqa: PLR0913 - What a key is made of.
    backend: KeyringBackend,
    *,
    published_at: datetime,
    signs_from: datetime,
    alg: str = "RS256",
    bits: int = RSA_MIN_BITS,
    written_at: datetime | None = None,
) -> SigningKey:
    """Put a new key into a ring, whether or not that is safe; with ``written_at`` as a command does."""
    kid, private_key = new_key(alg, bits)
    key = SigningKey(kid, alg, published_at, signs_from, None, private_key)
    backend.change(lambda ring: Ring((*ring.keys, key), ring.signing_alg, written_at or ring.written_at))
    return key


def generate_long_ago(keys: KeyringManager, ago: timedelta = timedelta(days=8)) -> Ring:
    """Make a key and its standby as they would be, had that been done so long ago: every verifier knows both."""
    past = replace(keys, clock=lambda: keys.clock() - ago)
    return past.generate()[0]
