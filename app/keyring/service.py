"""What ``flask keys`` does to a ring, in whichever home it lives. Which steps are safe is left to ``keyring.plan``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count

from app.config.settings import Settings
from app.crypto.algorithms import RSA_MIN_BITS, PrivateKey, size_in_bits
from app.errors import ManagementError
from app.keyring import rotation_plan
from app.keyring.backends.base import KeyringBackend
from app.keyring.model import Ring, SigningKey
from app.keyring.rotation_plan import NewKeys, Planner, Rules
from app.keyring.serialization import new_key
from app.types import Clock

_CLOCK_TOLERANCE = timedelta(seconds=rotation_plan.CLOCK_SKEW_SECONDS)

Step = Callable[[Planner, Ring], Ring]


def rules_for(settings: Settings, backend: KeyringBackend) -> Rules:
    """What safe means with these settings and a ring that lives there."""
    propagation = settings.keyring_propagation
    return Rules(
        announce_seconds=settings.key_announce,
        rotation_interval_seconds=settings.key_rotation_interval,
        jwks_max_age_seconds=settings.jwks_max_age,
        propagation_seconds=backend.propagation_seconds if propagation is None else propagation,
        skew_seconds=rotation_plan.CLOCK_SKEW_SECONDS if backend.is_shared else 0,
    )


@dataclass(frozen=True)
class KeyringManager:
    """Changes of one ring. Each returns the ring as it is then.

    All raise ``ManagementError`` for what is refused or cannot be written, ``StartError`` for a ring that cannot be
    read; the ring is as it was.
    """

    backend: KeyringBackend
    rules: Rules
    clock: Clock

    def generate(self, alg: str | None = None, bits: int | None = None) -> tuple[Ring, SigningKey]:
        """Add a key, and return it too. The first of a ring gets a standby."""
        made: list[str] = []

        def step(planner: Planner, ring: Ring) -> Ring:
            after = planner.generate(ring, alg or self.backend.signing_alg)
            known = {key.kid for key in ring.keys}
            made.extend(key.kid for key in after.keys if key.kid not in known)
            return after

        ring = self._change(step, alg, bits)
        return ring, rotation_plan.find(ring, made[0])

    def rotate(self, at: datetime | None = None, *, unsafe: bool = False) -> Ring:
        """Let the standby sign as early as is safe, or at a time; or as early as can be."""
        return self._change(lambda planner, ring: planner.rotate(ring, at, unsafe=unsafe))

    def unknown_until(self, at: datetime | None) -> datetime | None:
        """Until when verifiers may not know the standby; ``None`` if they all do when it would sign first.

        :param at: when it would, the earliest that can be unless given.
        """
        ring, now = self.backend.read(), self.clock()
        standby = next(iter(ring.standbys(now)), None)
        # One that is made only then is published then.
        known = self.rules.known_from(ring, standby or replace(ring.signing_key(now), published_at=now))
        begins = max(at or now, now + timedelta(seconds=self.rules.settled_seconds))
        return known if begins < known else None

    def prune(self) -> tuple[str, ...]:
        """Remove keys that have been gone or revoked for long, and return their names."""
        before: list[str] = []

        def step(planner: Planner, ring: Ring) -> Ring:
            before[:] = [key.kid for key in ring.keys]
            return planner.prune(ring)

        kept = {key.kid for key in self._change(step).keys}
        return tuple(kid for kid in before if kid not in kept)

    def rotate_if_due(self) -> Ring | None:
        """Do what is due; ``None`` when nothing is."""
        due: list[bool] = []

        def step(planner: Planner, ring: Ring) -> Ring:
            after = planner.rotate_if_due(ring)
            due.append(after is not None)
            return after or ring

        ring = self._change(step)
        return ring if due[-1] else None

    def revoke(self, kid: str) -> Ring:
        """Take a key out of use, in an emergency."""
        return self._change(lambda planner, ring: planner.revoke(ring, kid))

    def retire(self, alg: str) -> Ring:
        """Give up an algorithm that no longer signs."""
        return self._change(lambda planner, ring: planner.retire(ring, alg))

    def move_to(self, other: KeyringBackend) -> Ring:
        """Copy the ring to another home, which must be empty or have this very ring.

        :raises ManagementError: another ring is there.
        """
        ring = self.backend.read()

        def copy(there: Ring) -> Ring:
            if there.keys and [key.public_jwk for key in there.keys] != [key.public_jwk for key in ring.keys]:
                raise ManagementError(f"{other.name} has keys of its own: nothing was changed")
            return ring

        return other.change(copy)

    def _change(self, step: Step, alg: str | None = None, bits: int | None = None) -> Ring:
        def change(ring: Ring) -> Ring:
            wanted = alg or self.backend.signing_alg
            size = bits or max((size_in_bits(key.private_key) for key in ring.keys if key.alg == wanted), default=0)
            fresh = _FreshKeys(wanted, size or RSA_MIN_BITS)
            _refuse_a_clock_that_was_set_back(ring, self.clock())
            # The keys that it needs are made in a first round: a large one takes seconds, and the times of the second
            # are those at which the ring is written.
            step(Planner(self.rules, self.clock(), iter(fresh)), ring)
            return step(Planner(self.rules, self.clock(), iter(fresh)), ring)

        return self.backend.change(change)


class _FreshKeys:
    """New keys, made when they are asked for; the same ones again for whoever begins anew."""

    def __init__(self, alg: str, bits: int) -> None:
        self._alg = alg
        self._bits = bits
        self._made: list[tuple[str, PrivateKey]] = []

    def __iter__(self) -> NewKeys:
        for number in count():
            if number == len(self._made):
                self._made.append(new_key(self._alg, self._bits))
            yield self._made[number]


def _refuse_a_clock_that_was_set_back(ring: Ring, now: datetime) -> None:
    if ring.written_at and now < ring.written_at - _CLOCK_TOLERANCE:
        raise ManagementError(
            f"the clock says {now:%Y-%m-%dT%H:%M:%SZ}, and the ring was changed at "
            f"{ring.written_at:%Y-%m-%dT%H:%M:%SZ}: one of the two is wrong. Set the clock right; nothing was changed"
        )
