"""Management of a ring, for ``flask keys``, whichever backend stores it.

Which changes are safe is left to ``rotation_plan``.
"""

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
    """Return what safe means with these settings and a ring in that backend."""
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
    """Changes of one ring. Each returns the changed ring.

    All raise ``ManagementError`` for a refused or failed change and ``StartError`` for a ring that cannot be read;
    the ring is then unchanged.
    """

    backend: KeyringBackend
    rules: Rules
    clock: Clock

    def generate(
        self, alg: str | None = None, bits: int | None = None, *, if_none: bool = False
    ) -> tuple[Ring, SigningKey] | None:
        """Add a key and return it too. The first key of a ring gets a standby.

        :param if_none: only if there is no key yet; ``None`` is returned if there is one.
        """
        if if_none and not self.backend.is_empty():
            return None
        made: list[str] = []

        def step(planner: Planner, ring: Ring) -> Ring:
            if if_none and ring.keys:
                # Another process was first.
                return ring
            after = planner.generate(ring, alg or self.backend.signing_alg)
            known = {key.kid for key in ring.keys}
            made.extend(key.kid for key in after.keys if key.kid not in known)
            return after

        ring = self._change(step, alg, bits)
        return (ring, rotation_plan.find(ring, made[0])) if made else None

    def rotate(self, at: datetime | None = None, *, unsafe: bool = False, alg: str | None = None) -> Ring:
        """Let the standby sign as early as is safe, or at a given time, or as early as possible.

        :param alg: of which algorithm; by default that of the settings.
        """
        return self._change(_of_algorithm(alg, lambda planner, ring: planner.rotate(ring, at, unsafe=unsafe)), alg)

    def unknown_until(self, at: datetime | None, alg: str | None = None) -> datetime | None:
        """Return until when some verifiers may not know the standby; ``None`` if all know it before it signs.

        :param at: when it would sign; by default the earliest possible time.
        """
        ring, now = self.backend.read(), self.clock()
        ring = replace(ring, signing_alg=alg or ring.signing_alg)
        standby = next(iter(ring.standbys(now)), None)
        # A key that is created only then is published only then.
        known = self.rules.known_from(ring, standby or replace(ring.signing_key(now), published_at=now))
        begins = max(at or now, now + timedelta(seconds=self.rules.settled_seconds))
        return known if begins < known else None

    def prune(self) -> tuple[str, ...]:
        """Delete keys that have been gone or revoked for long; return their kids."""
        before: list[str] = []

        def step(planner: Planner, ring: Ring) -> Ring:
            before[:] = [key.kid for key in ring.keys]
            return planner.prune(ring)

        kept = {key.kid for key in self._change(step).keys}
        return tuple(kid for kid in before if kid not in kept)

    def rotate_if_due(self, alg: str | None = None) -> Ring | None:
        """Do what is due; return ``None`` if nothing is.

        :param alg: of which algorithm; by default that of the settings.
        """
        due: list[bool] = []

        def step(planner: Planner, ring: Ring) -> Ring:
            after = planner.rotate_if_due(ring)
            due.append(after is not None)
            return after or ring

        ring = self._change(_of_algorithm(alg, step), alg)
        return ring if due[-1] else None

    def revoke(self, kid: str, alg: str | None = None) -> Ring:
        """Revoke a key, in an emergency.

        :param alg: the algorithm whose standby then signs; by default that of the settings.
        """
        return self._change(_of_algorithm(alg, lambda planner, ring: planner.revoke(ring, kid)), alg)

    def retire(self, alg: str) -> Ring:
        """Give up an algorithm that no longer signs."""
        return self._change(lambda planner, ring: planner.retire(ring, alg))

    def move_to(self, other: KeyringBackend) -> Ring:
        """Copy the ring to another backend, which must be empty or contain this very ring.

        :raises ManagementError: the other backend contains another ring.
        """
        ring = self.backend.read()

        def copy(there: Ring) -> Ring:
            if there.keys and [key.public_jwk for key in there.keys] != [key.public_jwk for key in ring.keys]:
                raise ManagementError(f"{other.name} has keys of its own: nothing was changed")
            # A ring that was written by hand may have no time.
            return replace(ring, written_at=ring.written_at or self.clock())

        return other.change(copy)

    def _change(self, step: Step, alg: str | None = None, bits: int | None = None) -> Ring:
        def change(ring: Ring) -> Ring:
            wanted = alg or self.backend.signing_alg
            size = bits or max((size_in_bits(key.private_key) for key in ring.keys if key.alg == wanted), default=0)
            fresh = _FreshKeys(wanted, size or RSA_MIN_BITS)
            _refuse_a_clock_that_was_set_back(ring, self.clock())
            # Plan twice: generating a large key takes seconds, and the second plan's times are those at which the ring
            # is written.
            step(Planner(self.rules, self.clock(), iter(fresh)), ring)
            return step(Planner(self.rules, self.clock(), iter(fresh)), ring)

        return self.backend.change(change)


def _of_algorithm(alg: str | None, step: Step) -> Step:
    """Return a step that changes the keys of ``alg``: keys are succeeded by keys of the same algorithm only."""

    def changed(planner: Planner, ring: Ring) -> Ring:
        return replace(step(planner, replace(ring, signing_alg=alg or ring.signing_alg)), signing_alg=ring.signing_alg)

    return changed


class _FreshKeys:
    """New keys, generated on demand; each iteration yields the same keys again."""

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
