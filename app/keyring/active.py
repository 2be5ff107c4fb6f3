"""The ring that this process signs and publishes with.

A change is noticed within a second and replaces the whole ring.

A ring that cannot be read, or that would break verifiers, is rejected: the process logs that once, continues with
its ring and polls again. Time never goes back, whatever the clock does: a state that was reached stays.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from app.audit.events import ClockFellBehind, Event, Events, KeyRingLoaded, KeyRingRejected, KeyStateChanged
from app.config.values import format_time
from app.errors import ManagementError, StartError, Unreachable
from app.keyring.backends.base import KeyringBackend
from app.keyring.model import KeyState, Phase, Ring, SigningKey
from app.keyring.rotation_plan import CLOCK_SKEW_SECONDS, Rules, with_max_age
from app.keyring.serialization import dump_ring, load_ring
from app.keyring.validation import find_unsafe_changes
from app.shared_state import shared_state
from app.types import Clock

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often a worker checks whether the ring has changed: all workers know within 2 s."""

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)

_UNREAD = object()


class ActiveRing:
    """Holds the ring of this process.

    :param rules: the rules that a change must keep.
    """

    def __init__(self, backend: KeyringBackend, rules: Rules, events: Events, clock: Clock) -> None:
        self.backend = backend
        self.rules = rules
        self.fault: str | None = None
        """Why the latest ring was rejected or could not be read; ``None`` if it was accepted."""
        self.restore: Callable[[], Ring | None] = lambda: None
        """Returns a ring that was kept elsewhere, for a process that has none while its own cannot be read."""
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._is_unreachable = False
        self._ring: Ring | None = None
        self._version: object = _UNREAD
        self.is_clock_behind = False
        """Whether the clock shows an earlier time than was reached."""
        self._reached = EARLIEST
        self._states: dict[str, KeyState] | None = None
        self._phase: tuple[Ring | None, Phase | None] = None, None

    def __call__(self) -> Ring:
        """Return the ring; read it if that was never done.

        :raises StartError: it cannot be read.
        """
        return self._ring or self._look()

    def now(self) -> datetime:
        """Return the time that counts for states: the clock's, but never earlier than one that was reached."""
        return max(self._clock(), self._reached)

    def signing_key(self, alg: str | None = None) -> SigningKey:
        """Return the key that signs.

        :param alg: with which algorithm; by default that of the settings.
        :raises StartError: no key may sign.
        """
        ring, now = self(), self.now()
        return self._phase_of(ring, now).signers.get(alg or ring.signing_alg) or ring.signing_key(now, alg)

    def published_keys(self) -> tuple[SigningKey, ...]:
        """Return the keys of the JWKS, oldest first.

        :raises StartError: the ring cannot be read, and never could.
        """
        return self._phase_of(self(), self.now()).published_keys

    def _phase_of(self, ring: Ring, now: datetime) -> Phase:
        # Read once and replaced as a whole: other threads do the same.
        known_ring, phase = self._phase
        if known_ring is not ring or phase is None or not phase.start <= now < phase.end:
            phase = ring.phase(now)
            self._phase = ring, phase
        return phase

    def refresh(self) -> None:
        """Check whether the ring has changed, or a rejected ring has become valid. Never raises."""
        try:
            if self._ring is None or self.fault or self.backend.version() != self._version:
                self._look(again=True)
        except StartError as error:
            self._reject(error)
        self._watch_clock()
        self._watch_states()

    def record_max_age(self) -> None:
        """Record in the ring how long its JWKS may be cached: a shorter time later does not shorten older copies.

        A read-only ring is not changed: its operator must plan for the time.
        """
        ring = self()
        if with_max_age(ring, self.now(), self.rules) != ring:
            try:
                self.backend.change(lambda present: with_max_age(present, self.now(), self.rules))
            except ManagementError as error:
                log.warning("the cache time of the JWKS could not be recorded in the key ring: %s", error)

    def _look(self, *, again: bool = False) -> Ring:
        with self._lock:
            try:
                version = self.backend.version()
                if self._ring is not None and version == self._version and not again:
                    return self._ring
                # Set before reading: what is written during the read is another change.
                self._version = version
                found = self.backend.read()
            except StartError as error:
                return self._go_on_without(error)
            old = self._ring or self._recall()
            if old and (wrong := find_unsafe_changes(old, found, self.now(), self.rules)):
                return self._go_on_without(StartError("; ".join(wrong)))
            self._take(found)
            return found

    def _take(self, ring: Ring) -> None:
        if self.fault:
            log.info("the key ring is valid again")
        self._reach(ring.written_at or EARLIEST)
        before, self._ring, self.fault, self._is_unreachable = self._ring, ring, None, False
        if shared := shared_state():
            shared.store(dump_ring(ring))
        if before is not None and _steps(ring) != _steps(before):
            published = tuple(key.kid for key in self.published_keys())
            log.info("a changed key ring is in use: %s signs", self.signing_key().kid)
            event = KeyRingLoaded(signing=self.signing_key().kid, published=published)
            self._emit_once(event, f"{event} {self._version}")

    def _go_on_without(self, fault: StartError) -> Ring:
        known = self._ring or self._recall() or self.restore()
        if known is None:
            self._version = _UNREAD
            raise fault
        self._ring = known
        self._reject(fault)
        return known

    def _watch_clock(self) -> None:
        now = self._clock()
        self._reach(now)
        behind = (self._reached - now).total_seconds()
        was_behind, self.is_clock_behind = self.is_clock_behind, behind > CLOCK_SKEW_SECONDS
        if self.is_clock_behind and not was_behind:
            log.error(
                "the clock is %d s behind the time reached at %s: keys keep the states that they had then",
                behind,
                format_time(self._reached),
            )
            self._emit_once(
                ClockFellBehind(reached_at=self._reached, behind_seconds=round(behind)), "the clock fell behind"
            )
        elif was_behind and not self.is_clock_behind:
            log.info("the clock is right again")

    def _watch_states(self) -> None:
        """Emit the state changes since the last poll."""
        ring, now = self._ring, self.now()
        if ring is None:
            return
        before, self._states = self._states, {key.kid: ring.state_of(key, now) for key in ring.keys}
        if before is None or before == self._states:
            return
        for key in ring.keys:
            state = self._states[key.kid]
            if before.get(key.kid) != state:
                self._emit_once(KeyStateChanged(kid=key.kid, state=str(state), since=ring.since(key, now)))

    def _emit_once(self, event: Event, what: str | None = None) -> None:
        """Emit ``event``, unless another worker of this server has just emitted the same ``what``."""
        shared = shared_state()
        if shared is None or shared.claim(what or str(event)):
            self._events.emit(event)

    def _reach(self, time: datetime) -> None:
        """Remember the latest time of this worker and, in shared memory, of its siblings."""
        shared = shared_state()
        self._reached = max(self._reached, shared.reach(time) if shared else time)

    def _recall(self) -> Ring | None:
        shared = shared_state()
        content = shared.load() if shared else None
        return load_ring(content, self.backend.signing_alg) if content else None

    def _reject(self, error: StartError) -> None:
        before, self.fault = self.fault, str(error)
        was_unreachable, self._is_unreachable = self._is_unreachable, isinstance(error, Unreachable)
        if self._is_unreachable:
            # Nothing was changed, so nothing was rejected.
            if not was_unreachable:
                log.error("the last good key ring stays in use: %s", error)
        elif self.fault != before:
            log.error("the changed key ring was rejected; the last good one stays in use: %s", error)
            self._emit_once(KeyRingRejected(fault=self.fault), f"{self.fault} {self._version}")


def _steps(ring: Ring) -> list[SigningKey]:
    """Return what a ring says about its keys, without what is only recorded about them."""
    return [replace(key, jwks_max_age=0) for key in ring.keys]
