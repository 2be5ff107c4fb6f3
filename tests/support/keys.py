"""Keys at times that a test chooses, which no command would write."""

from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from itertools import cycle

from app.crypto.algorithms import RSA_MIN_BITS, PrivateKey
from app.keyring.backends.base import KeyringBackend
from app.keyring.model import Ring, SigningKey
from app.keyring.serialization import new_key
from app.keyring.service import KeyringManager

KEYS = 20
"""More than any test adds to its rings."""


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
    kid, private_key = _next_key() if (alg, bits) == ("RS256", RSA_MIN_BITS) else new_key(alg, bits)
    key = SigningKey(kid, alg, published_at, signs_from, None, private_key)
    backend.change(lambda ring: Ring((*ring.keys, key), ring.signing_alg, written_at or ring.written_at))
    return key


@cache
def _keys() -> "cycle[tuple[str, PrivateKey]]":
    return cycle([new_key("RS256", RSA_MIN_BITS) for _ in range(KEYS)])


def _next_key() -> tuple[str, PrivateKey]:
    """Return another key than the last few: generating one takes most of the time of making an application."""
    return next(_keys())


def generate_long_ago(keys: KeyringManager, ago: timedelta = timedelta(days=8)) -> Ring:
    """Make a key and its standby as they would be, had that been done so long ago: every verifier knows both."""
    past = replace(keys, clock=lambda: keys.clock() - ago)
    return past.generate()[0]
