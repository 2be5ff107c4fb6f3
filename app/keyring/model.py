"""The states of keys: a pure function of the ring and the clock, so that all workers agree without communicating.

*announced* keys are published and do not sign yet. Exactly one key is *signing*: the newest key of the signing
algorithm whose time has come. *retiring* keys no longer sign, and stay published for longer than any token lives;
then they are *gone*. *revoked* keys leave at once: if one was signing, the standby that was announced first signs in
its place. A key that has been succeeded never signs again.

Which keys are published does not depend on which algorithm signs, so a server whose setting is older than its
neighbour's never signs with a key that the neighbour does not publish.

Which change of a ring is safe is left to ``rotation_plan``, how a ring is stored to ``backends``.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any

from app.crypto.algorithms import ALGORITHMS, Jwk, PrivateKey, Signer, to_jwk
from app.errors import StartError

RETIRE_AFTER = timedelta(hours=24, seconds=60)
"""How long a key is published after its last signature: the longest lifetime of a token plus verifiers' leeway."""

_BEGINNING, _END = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

_JWK_MEMBERS = ("crv", "x", "y", "n", "e")


class KeyState(StrEnum):
    """The state of a key at a moment."""

    ANNOUNCED = "announced"
    SIGNING = "signing"
    RETIRING = "retiring"
    GONE = "gone"
    REVOKED = "revoked"


_PUBLISHED = {KeyState.ANNOUNCED, KeyState.SIGNING, KeyState.RETIRING}


@dataclass(frozen=True)
class SigningKey:
    """A key with its times. Signs with ``private_key``, which is parsed once per process.

    :param signs_until: when it stops without a successor, because its algorithm is given up.
    :param private_key: in memory only, never shown. Keys are compared by their other members.
    :param jwks_max_age: the longest that verifiers were ever told to cache a JWKS with this key, in seconds.
    :param is_unsafe: an operator let it sign before every verifier knows it, with ``--unsafe``.
    """

    kid: str
    alg: str
    published_at: datetime
    signs_from: datetime
    revoked_at: datetime | None
    private_key: PrivateKey = field(compare=False)
    signs_until: datetime | None = None
    jwks_max_age: int = 0
    is_unsafe: bool = False

    def __repr__(self) -> str:
        """Keep the key out of tracebacks and logs."""
        return f"SigningKey({self.kid})"

    @cached_property
    def jwk(self) -> Jwk:
        """The key as a joserfc object, for its public members."""
        return to_jwk(self.private_key)

    @cached_property
    def sign(self) -> Signer:
        """The signing function: signing input of a JWS to signature (RFC 7518)."""
        return ALGORITHMS[self.alg].signer(self.private_key)

    @cached_property
    def public_key(self) -> Any:
        """The public key."""
        return self.private_key.public_key()

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a signature of :meth:`sign`.

        :raises InvalidSignature: it is not this key's signature over ``message``.
        """
        ALGORITHMS[self.alg].verify(self.public_key, signature, message)

    @cached_property
    def public_jwk(self) -> dict[str, Any]:
        """Return the members that the JWKS shows: ``kty kid use alg``, then ``n e`` or ``crv x y``."""
        members = self.jwk.as_dict(private=False)
        shown = {"kty": members["kty"], "kid": self.kid, "use": "sig", "alg": self.alg}
        return shown | {name: members[name] for name in _JWK_MEMBERS if name in members}


@dataclass(frozen=True, slots=True)
class Span:
    """A state from ``start`` until ``end`` (``None``: for good). ``state`` is ``None`` before the key exists."""

    state: KeyState | None
    start: datetime
    end: datetime | None


@dataclass(frozen=True, slots=True)
class Phase:
    """What holds for a ring from ``start`` until just before ``end``: no state changes in between.

    :param signers: the key that signs with each algorithm.
    :param published_keys: the keys of the JWKS, oldest first.
    """

    start: datetime
    end: datetime
    signers: Mapping[str, SigningKey]
    published_keys: tuple[SigningKey, ...]


@dataclass(frozen=True)
class Ring:
    """All keys.

    :param signing_alg: the algorithm that signs, from the settings.
    :param written_at: when a command last changed the ring.
    :raises StartError: two keys have the same ``kid``.
    """

    keys: tuple[SigningKey, ...]
    signing_alg: str = "RS256"
    written_at: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse a ring that is wrong at every moment."""
        kids = [key.kid for key in self.keys]
        if twice := {kid for kid in kids if kids.count(kid) > 1}:
            raise StartError(f"the key ring has kid {min(twice)!r} twice: each key needs a kid of its own")

    def find(self, kid: str) -> SigningKey | None:
        """Find a key by its id."""
        return next((key for key in self.keys if key.kid == kid), None)

    def state_of(self, key: SigningKey, now: datetime) -> KeyState:
        """Return the state of one of the ring's keys at ``now``."""
        if _is_revoked(key, now):
            return KeyState.REVOKED
        stopped = [other.signs_from for other in self._come(now) if _succeeds(other, key)]
        if key.signs_until is not None and key.signs_until <= now:
            stopped.append(key.signs_until)
        if not stopped:
            signs = key == self._signer(self.signing_alg, now)
            return KeyState.SIGNING if signs else KeyState.ANNOUNCED
        return KeyState.RETIRING if now < min(stopped) + RETIRE_AFTER else KeyState.GONE

    def signing_key(self, now: datetime, alg: str | None = None) -> SigningKey:
        """Return the one key that signs at ``now``.

        :param alg: with which algorithm; by default :attr:`signing_alg`.
        :raises StartError: no key may sign.
        """
        signer = self._signer(alg or self.signing_alg, now)
        if signer is None:
            raise StartError(self.why_none_signs(now, alg))
        return signer

    def usable(self, now: datetime) -> list[SigningKey]:
        """Return, for each algorithm, the key that would sign at ``now`` if that algorithm did."""
        signers = (self._signer(alg, now) for alg in sorted({key.alg for key in self.keys}))
        return [key for key in signers if key]

    def published_keys(self, now: datetime) -> tuple[SigningKey, ...]:
        """Return the keys of the JWKS at ``now``, oldest first."""
        published = [key for key in self.keys if key.published_at <= now and self.state_of(key, now) in _PUBLISHED]
        return tuple(sorted(published, key=_seniority))

    def standbys(self, now: datetime, alg: str | None = None) -> list[SigningKey]:
        """Return the keys of an algorithm whose time has not come, the next one first.

        :param alg: by default :attr:`signing_alg`.
        """
        waiting = [
            key
            for key in self.keys
            if key.alg == (alg or self.signing_alg)
            and key.signs_from > now
            and key.revoked_at is None
            and key.signs_until is None
        ]
        return sorted(waiting, key=_seniority)

    def changes(self) -> list[datetime]:
        """Return every moment at which a state may change, in order, if nobody edits the ring."""
        stops = {time for key in self.keys for time in (key.signs_from, key.signs_until) if time}
        others = {time for key in self.keys for time in (key.published_at, key.revoked_at) if time}
        return sorted(stops | others | {time + RETIRE_AFTER for time in stops})

    def phase(self, now: datetime) -> Phase:
        """Return all that a request needs to know, for as long as it holds."""
        changes = self.changes()
        place = bisect_right(changes, now)
        return Phase(
            start=changes[place - 1] if place else _BEGINNING,
            end=changes[place] if place < len(changes) else _END,
            signers={key.alg: key for key in self.usable(now)},
            published_keys=self.published_keys(now),
        )

    def spans(self, key: SigningKey) -> list[Span]:
        """Return all states of ``key``, in order, from its publication on."""
        spans: list[Span] = []
        for time in self.changes():
            if time < key.published_at:
                continue
            state = self.state_of(key, time)
            if not spans or spans[-1].state != state:
                if spans:
                    spans[-1] = Span(spans[-1].state, spans[-1].start, time)
                spans.append(Span(state, time, None))
        return spans

    def next_change(self, now: datetime) -> datetime | None:
        """Return when the next key enters another state, if nobody edits the ring; ``None`` if none ever does."""
        starts = (span.start for key in self.keys for span in self.spans(key))
        return min((start for start in starts if start > now), default=None)

    def since(self, key: SigningKey, now: datetime) -> datetime:
        """Return when ``key`` entered the state that it has at ``now``."""
        return max((span.start for span in self.spans(key) if span.start <= now), default=key.published_at)

    def _signer(self, alg: str, now: datetime) -> SigningKey | None:
        """Return the key of ``alg`` whose turn it is, or the standby of a key that was revoked in its turn."""
        newest = max((key for key in self._come(now) if key.alg == alg), key=_seniority, default=None)
        if newest is None or not _is_revoked(newest, now):
            return newest if newest and not _is_given_up(newest, now) else None
        standbys = [
            key
            for key in self.keys
            if _succeeds(key, newest)
            and key.published_at <= now
            and not (_is_revoked(key, now) or _is_given_up(key, now))
        ]
        return min(standbys, key=lambda key: (key.published_at, *_seniority(key)), default=None)

    def _come(self, now: datetime) -> Iterator[SigningKey]:
        """Yield the keys whose time has come, whatever happened to them since."""
        for key in self.keys:
            had_a_turn = key.revoked_at is None or key.revoked_at > key.signs_from
            if key.published_at <= now and key.signs_from <= now and had_a_turn:
                yield key

    def why_none_signs(self, now: datetime, alg: str | None = None) -> str:
        """Return a sentence for operators.

        :param alg: of an API; by default :attr:`signing_alg`.
        """
        if alg and alg != self.signing_alg:
            first = min((key.signs_from for key in self.standbys(now, alg)), default=None)
            later = f"the first may sign from {first.isoformat()} on" if first else f"`flask keys generate --alg {alg}`"
            return f"the key ring has no {alg} key that may sign now: {later}"
        others = sorted({key.alg for key in self.usable(now)})
        which = f"{self.signing_alg} key" if others else "key"
        first = min((key.signs_from for key in self.standbys(now)), default=None)
        later = f"the first may sign from {first.isoformat()} on" if first else "`flask keys generate` makes one"
        keep = f"; keep TOKENHOUSE_SIGNING_ALG={others[0]} until then" if others else ""
        return f"the key ring has no {which} that may sign now: {later}{keep}"


def _seniority(key: SigningKey) -> tuple[datetime, str]:
    """Order keys by time; the kid breaks a tie in the same way on every machine."""
    return key.signs_from, key.kid


def _is_revoked(key: SigningKey, now: datetime) -> bool:
    return key.revoked_at is not None and key.revoked_at <= now


def _is_given_up(key: SigningKey, now: datetime) -> bool:
    return key.signs_until is not None and key.signs_until <= now


def _succeeds(other: SigningKey, key: SigningKey) -> bool:
    """Return whether ``other`` takes over from ``key`` once its time has come."""
    return other.alg == key.alg and _seniority(other) > _seniority(key)
