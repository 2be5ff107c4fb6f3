"""The states of keys: a pure function of the ring and the clock, so all workers agree without talking.

*announced* keys are published and do not sign; exactly one key is *signing*: the newest whose time has come; *retiring*
keys no longer sign and stay published for longer than any token may live; then they are *gone*. How a ring is kept is
left to ``keyring.file``.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from joserfc.jwk import RSAKey

from app.settings import StartError

RETIRE_AFTER = timedelta(hours=24, seconds=60)
"""How long a key is published after its last signature: the longest a token may live, and verifiers' leeway."""

RSA_MIN_BITS = 2048


class KeyState(StrEnum):
    """What a key does at a moment."""

    ANNOUNCED = "announced"
    SIGNING = "signing"
    RETIRING = "retiring"
    GONE = "gone"
    REVOKED = "revoked"


@dataclass(frozen=True)
class SigningKey:
    """A key with its times. Signs with ``private_key``, parsed once per process.

    :param private_key: in memory only; never shown.
    """

    kid: str
    alg: str
    published_at: datetime
    signs_from: datetime
    revoked_at: datetime | None
    private_key: RSAPrivateKey

    def __repr__(self) -> str:
        """Keep the key out of every traceback and log."""
        return f"SigningKey({self.kid})"

    @cached_property
    def jwk(self) -> RSAKey:
        """The private key in the form that joserfc signs with."""
        return RSAKey(self.private_key, self.private_key, {})

    @cached_property
    def public_jwk(self) -> dict[str, Any]:
        """Public members only, as the JWKS shows them: ``kty n e kid use alg``."""
        members = self.jwk.as_dict(private=False)
        return {"kty": "RSA", "kid": self.kid, "use": "sig", "alg": self.alg, "n": members["n"], "e": members["e"]}


@dataclass(frozen=True)
class Ring:
    """All keys that there are.

    :raises StartError: none, or two of one ``kid``.
    """

    keys: tuple[SigningKey, ...]

    def __post_init__(self) -> None:
        """Refuse what no moment could make right."""
        kids = [key.kid for key in self.keys]
        if twice := {kid for kid in kids if kids.count(kid) > 1}:
            raise StartError(f"the key ring has kid {min(twice)!r} twice: each key needs a kid of its own")

    def state_of(self, key: SigningKey, now: datetime) -> KeyState:
        """State of one of the ring's keys at ``now``."""
        if key.revoked_at is not None and key.revoked_at <= now:
            return KeyState.REVOKED
        if key.signs_from > now:
            return KeyState.ANNOUNCED
        successors = [other for other in self._usable(now) if _seniority(other) > _seniority(key)]
        if not successors:
            return KeyState.SIGNING
        stopped_signing = min(other.signs_from for other in successors)
        return KeyState.RETIRING if now < stopped_signing + RETIRE_AFTER else KeyState.GONE

    def signing_key(self, now: datetime) -> SigningKey:
        """The one key that signs at ``now``.

        :raises StartError: there is none.
        """
        usable = self._usable(now)
        if not usable:
            first = min((key.signs_from for key in self.keys if key.revoked_at is None), default=None)
            later = f"the first may sign from {first.isoformat()} on" if first else "`flask keys generate` makes one"
            raise StartError(f"the key ring has no key that may sign now: {later}")
        return max(usable, key=_seniority)

    def published_keys(self, now: datetime) -> tuple[SigningKey, ...]:
        """The keys of the JWKS at ``now``, oldest first."""
        shown = {KeyState.ANNOUNCED, KeyState.SIGNING, KeyState.RETIRING}
        published = [key for key in self.keys if key.published_at <= now and self.state_of(key, now) in shown]
        return tuple(sorted(published, key=_seniority))

    def next_change(self, now: datetime) -> datetime | None:
        """When a state changes next, if nobody edits the ring."""
        times = {time for key in self.keys for time in (key.published_at, key.signs_from, key.revoked_at) if time}
        times |= {key.signs_from + RETIRE_AFTER for key in self.keys}
        return min((time for time in times if time > now), default=None)

    def _usable(self, now: datetime) -> list[SigningKey]:
        return [
            key
            for key in self.keys
            if key.published_at <= now and key.signs_from <= now and (key.revoked_at is None or key.revoked_at > now)
        ]


def _seniority(key: SigningKey) -> tuple[datetime, str]:
    """Order by time; the kid settles a tie, alike on every machine."""
    return key.signs_from, key.kid


def earliest_safe_time(
    now: datetime, *, announce_seconds: int, jwks_max_age_seconds: int, skew_seconds: int
) -> datetime:
    """When a key that is published at ``now`` may sign first: every cached JWKS has run out by then, on every clock."""
    shortest = jwks_max_age_seconds + skew_seconds
    return (now + timedelta(seconds=max(announce_seconds, shortest))).astimezone(UTC)
