"""Changes of a ring that cannot break a verifier. Pure: rings and times in, rings out.

The rule: a key signs only when every verifier's copy of the JWKS is younger than the key, and leaves the JWKS only
when no token of it can be alive. A standby is always announced, so that the next signing key is one that every
verifier has known for long, in an emergency too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.config.values import format_time
from app.crypto.algorithms import PrivateKey
from app.errors import ManagementError, StartError
from app.keyring.model import KeyState, Ring, SigningKey

FORGET_AFTER = timedelta(days=30)
"""How long a gone or revoked key stays in the ring, for people to look at. Its private key is deleted with it."""

CLOCK_SKEW_SECONDS = 60
"""How far apart the clocks of several machines may be. One machine has one clock."""

ROUNDING_SECONDS = 1
"""Times in a ring are whole seconds."""

NewKeys = Iterator[tuple[str, PrivateKey]]
"""New keys, each with its kid."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What safe means for one installation; all in whole seconds.

    :param propagation_seconds: how long a change of the ring takes to reach every machine.
    :param skew_seconds: how far apart the machines' clocks are.
    """

    announce_seconds: int
    rotation_interval_seconds: int
    jwks_max_age_seconds: int
    propagation_seconds: int
    skew_seconds: int

    @property
    def settled_seconds(self) -> int:
        """How long a change takes until it is known everywhere, on every clock."""
        return self.propagation_seconds + self.skew_seconds + ROUNDING_SECONDS

    def floor_seconds(self, ring: Ring) -> int:
        """Return the shortest time from a key's publication to its first signature: every cached JWKS has expired."""
        served = max((key.jwks_max_age for key in ring.keys), default=0)
        return max(self.jwks_max_age_seconds, served) + self.settled_seconds

    def known_from(self, ring: Ring, key: SigningKey) -> datetime:
        """Return when every verifier knows ``key``: each cached JWKS is younger than it."""
        return key.published_at + timedelta(seconds=self.floor_seconds(ring))

    def safe_from(self, ring: Ring, published_at: datetime) -> datetime:
        """Return when a key that is published at ``published_at`` may sign first."""
        return published_at + timedelta(seconds=max(self.announce_seconds, self.floor_seconds(ring)))

    def safe_after(self, ring: Ring, key: SigningKey, now: datetime) -> datetime:
        """Return when ``key``, which is in the ring, may sign first if that is changed now."""
        return max(
            whole_second_after(now) + timedelta(seconds=self.settled_seconds), self.safe_from(ring, key.published_at)
        )


def whole_second_after(now: datetime) -> datetime:
    """Return ``now``, or the next whole second."""
    floor = now.replace(microsecond=0)
    return floor if floor == now else floor + timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes the next ring from the present one.

    :param fresh: new keys of the requested algorithm.
    """

    rules: Rules
    now: datetime
    fresh: NewKeys

    def generate(self, ring: Ring, alg: str) -> Ring:
        """Add a key of ``alg``: the first key of a ring signs at once and gets a standby, a further key is announced.

        :raises ManagementError: the first key is of an algorithm that does not sign.
        """
        if ring.usable(self.now):
            signs_from = self.rules.safe_from(ring, whole_second_after(self.now))
            return self._written(self._announce(ring, alg, signs_from))
        if alg != ring.signing_alg:
            raise ManagementError(
                f"a first key signs at once, so it must be of {ring.signing_alg} (TOKENHOUSE_SIGNING_ALG)"
            )
        ring = self._announce(ring, alg, self.now.replace(microsecond=0))
        return self._written(self._with_standby(ring))

    def rotate(self, ring: Ring, at: datetime | None = None, *, unsafe: bool = False) -> Ring:
        """Let the standby sign as early as is safe, and announce the next standby.

        :param at: not before this time.
        :param unsafe: as soon as every worker knows the change, even if not every verifier does.
        :raises ManagementError: ``at`` is too early, the standby signs as early as is safe already, or nothing signs
            now; the message names the earliest time.
        """
        try:
            ring.signing_key(self.now)
        except StartError as error:
            raise ManagementError(str(error)) from None
        ring = self._with_standby(ring)
        standby = ring.standbys(self.now)[0]
        earliest = self.rules.safe_after(ring, standby, self.now)
        if unsafe:
            earliest = whole_second_after(self.now) + timedelta(seconds=self.rules.settled_seconds)
        followers = [key for key in ring.standbys(self.now) if key.kid != standby.kid]
        if at is not None:
            self._refuse_what_is_not_in_between(at, standby, earliest, followers)
            earliest = whole_second_after(at)
        moved = standby.signs_from > earliest if at is None else standby.signs_from != earliest
        if moved:
            is_early = earliest < self.rules.known_from(ring, standby)
            ring = _replaced(ring, replace(standby, signs_from=earliest, is_unsafe=is_early))
        if followers and not moved:
            raise ManagementError(
                f"{standby.kid} signs from {format_time(standby.signs_from)} on, and sooner is not safe: nothing was "
                "changed"
            )
        if not followers:
            begins = earliest if moved else standby.signs_from
            ring = self._announce(ring, ring.signing_alg, self._turn_after(ring, begins))
        return self._written(ring)

    def rotate_if_due(self, ring: Ring) -> Ring | None:
        """Do what is due: announce a missing standby, or :meth:`rotate` an old signing key.

        :returns: ``None`` if nothing is due.
        :raises ManagementError: nothing signs now.
        """
        standbys = ring.standbys(self.now)
        if not standbys:
            try:
                ring.signing_key(self.now)
            except StartError as error:
                raise ManagementError(str(error)) from None
            return self._written(self._with_standby(ring))
        due = rotation_due(ring, self.now, self.rules)
        is_old = due <= self.now and standbys[0].signs_from > self.rules.safe_after(ring, standbys[0], self.now)
        return self.rotate(ring) if is_old else None

    def revoke(self, ring: Ring, kid: str) -> Ring:
        """Revoke a key: if it was signing, the standby signs at once, and another standby is announced.

        Each worker drops the key as soon as it sees the new ring. Revoking twice changes nothing.

        :raises ManagementError: the key does not exist.
        """
        key = find(ring, kid)
        if key.revoked_at is not None and key.revoked_at <= self.now:
            return ring
        moment = self.now.replace(microsecond=0)
        was_signing = signing_or_none(ring, self.now) == key
        ring = _replaced(ring, replace(key, revoked_at=min(moment, key.revoked_at or moment)))
        if was_signing or self._leaves_a_gap(ring):
            ring = self._promote_standby(ring, moment)
        if key.alg == ring.signing_alg:
            ring = self._with_standby(ring)
        return self._written(ring)

    def retire(self, ring: Ring, alg: str) -> Ring:
        """Give up an algorithm that no longer signs: its keys leave the JWKS when no token of them can be alive.

        :raises ManagementError: the algorithm signs, or the ring has no key of it.
        """
        if alg == ring.signing_alg:
            raise ManagementError(f"{alg} is what signs (TOKENHOUSE_SIGNING_ALG): set another first")
        mine = [key for key in ring.keys if key.alg == alg and key.signs_until is None and key.revoked_at is None]
        if not mine:
            raise ManagementError(f"the key ring has no {alg} key in use")
        try:
            ring.signing_key(self.now)
        except StartError as error:
            raise ManagementError(str(error)) from None
        until = whole_second_after(self.now) + timedelta(seconds=self.rules.settled_seconds)
        for key in mine:
            ring = _replaced(ring, replace(key, signs_until=until))
        return self._written(ring)

    def prune(self, ring: Ring) -> Ring:
        """Delete keys that have been gone or revoked for long. As every change, this leaves a standby."""
        kept = without_forgotten(ring, self.now)
        return ring if kept == ring else self._written(self._with_standby(kept))

    def _refuse_what_is_not_in_between(
        self, at: datetime, standby: SigningKey, earliest: datetime, followers: Sequence[SigningKey]
    ) -> None:
        if at < self.now:
            raise ManagementError(f"{format_time(at)} is over: the earliest safe time is {format_time(earliest)}")
        if at < earliest:
            raise ManagementError(
                f"{standby.kid} would sign from {format_time(at)} on, before verifiers know it: the earliest safe time "
                f"is {format_time(earliest)}"
            )
        if followers and at >= followers[0].signs_from:
            raise ManagementError(
                f"{followers[0].kid} signs from {format_time(followers[0].signs_from)} on: {standby.kid} must sign "
                "before it"
            )

    def _announce(self, ring: Ring, alg: str, signs_from: datetime) -> Ring:
        kid, private_key = next(self.fresh)
        key = SigningKey(
            kid,
            alg,
            self.now.replace(microsecond=0),
            signs_from,
            None,
            private_key,
            jwks_max_age=self.rules.jwks_max_age_seconds,
        )
        return replace(ring, keys=(*ring.keys, key))

    def _with_standby(self, ring: Ring) -> Ring:
        if ring.standbys(self.now):
            return ring
        signing = signing_or_none(ring, self.now)
        turn = self._turn_after(ring, signing.signs_from if signing else self.now)
        return self._announce(ring, ring.signing_alg, turn)

    def _turn_after(self, ring: Ring, begins: datetime) -> datetime:
        """Return when a key that is announced now should follow a key that signs from ``begins`` on."""
        turn = whole_second_after(begins + timedelta(seconds=self.rules.rotation_interval_seconds))
        return max(turn, self.rules.safe_from(ring, whole_second_after(self.now)))

    def _leaves_a_gap(self, ring: Ring) -> bool:
        """Return whether at some later time no key would sign."""
        return any(signing_or_none(ring, time) is None for time in ring.changes() if time > self.now)

    def _promote_standby(self, ring: Ring, moment: datetime) -> Ring:
        """Let the standby that was published first sign from ``moment`` on; create a key if there is no standby.

        It signs a second later if the revoked key begins at the same moment: otherwise the kid would decide between
        them.
        """
        begun = [
            key.signs_from
            for key in ring.keys
            if key.alg == ring.signing_alg and key.revoked_at and moment <= key.signs_from < key.revoked_at
        ]
        begins = max(begun) + timedelta(seconds=1) if begun else moment
        standbys = [key for key in ring.standbys(self.now) if key.published_at <= self.now]
        if not standbys:
            return self._announce(ring, ring.signing_alg, begins)
        chosen = min(standbys, key=lambda key: (key.published_at, key.signs_from, key.kid))
        return _replaced(ring, replace(chosen, signs_from=begins))

    def _written(self, ring: Ring) -> Ring:
        ring = with_max_age(without_forgotten(ring, self.now), self.now, self.rules)
        return replace(ring, written_at=self.now.replace(microsecond=0))


def rotation_due(ring: Ring, now: datetime, rules: Rules) -> datetime:
    """Return when the signing key will have signed for the rotation interval."""
    try:
        signing = ring.signing_key(now)
    except StartError as error:
        raise ManagementError(str(error)) from None
    return signing.signs_from + timedelta(seconds=rules.rotation_interval_seconds)


def find(ring: Ring, kid: str) -> SigningKey:
    """Find a key that must exist.

    :raises ManagementError: it does not.
    """
    key = ring.find(kid)
    if key is None:
        raise ManagementError(f"there is no key {kid!r}: `flask keys list` shows all")
    return key


def with_max_age(ring: Ring, now: datetime, rules: Rules) -> Ring:
    """Return ``ring`` with the JWKS cache time recorded at each published key; the recorded time never falls.

    If the time has grown, a cached copy that lacks a new key may live longer than was planned for. The standby's
    turn is then postponed, unless it is so near that some machine may not learn of it in time.
    """
    published = {key.kid for key in ring.published_keys(now)}
    longest = rules.jwks_max_age_seconds
    keys = tuple(
        replace(key, jwks_max_age=longest) if key.kid in published and key.jwks_max_age < longest else key
        for key in ring.keys
    )
    if keys == ring.keys:
        return ring
    ring = replace(ring, keys=keys)
    heard = now + timedelta(seconds=rules.settled_seconds)
    for standby in [key for alg in sorted({key.alg for key in ring.keys}) for key in ring.standbys(now, alg)]:
        known = rules.known_from(ring, standby)
        if heard < standby.signs_from < known and not standby.is_unsafe:
            ring = _replaced(ring, replace(standby, signs_from=known))
    return ring


def without_forgotten(ring: Ring, now: datetime) -> Ring:
    """Return ``ring`` without keys that have been gone or revoked for long."""
    kept = tuple(key for key in ring.keys if not _is_forgotten(ring, key, now))
    return replace(ring, keys=kept)


def _is_forgotten(ring: Ring, key: SigningKey, now: datetime) -> bool:
    long_ago = now - FORGET_AFTER
    return key.published_at <= long_ago and ring.state_of(key, long_ago) in {KeyState.GONE, KeyState.REVOKED}


def _replaced(ring: Ring, key: SigningKey) -> Ring:
    return replace(ring, keys=tuple(key if other.kid == key.kid else other for other in ring.keys))


def signing_or_none(ring: Ring, time: datetime) -> SigningKey | None:
    """Return the key that signs at ``time``, if there is one."""
    try:
        return ring.signing_key(time)
    except StartError:
        return None
