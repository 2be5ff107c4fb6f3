"""Rotation over time: whatever people do and however long they wait, no honest token is ever unverifiable.

A model of the whole: the ring as it was written at each moment, workers that see it late and by a clock that is off,
and verifiers that each keep a copy of the JWKS for as long as it may be cached, and never fetch a new one earlier. A
key that is revoked in an emergency is the one exception, with what it signed; a second is a fresh key that signs
because no standby was old enough, of which the command warns.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.config.values import DAY
from app.crypto.algorithms import PrivateKey
from app.errors import ManagementError, StartError
from app.keyring.model import KeyState, Ring
from app.keyring.rotation_plan import Planner, Rules, with_max_age
from app.keyring.validation import find_problems, find_unsafe_changes

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PRIVATE_KEY = rsa.generate_private_key(65537, 2048)

LOCAL = Rules(
    announce_seconds=7 * DAY,
    rotation_interval_seconds=90 * DAY,
    jwks_max_age_seconds=300,
    propagation_seconds=2,
    skew_seconds=0,
)
SHARED = replace(LOCAL, propagation_seconds=300, skew_seconds=60)
HASTY = replace(LOCAL, announce_seconds=0, rotation_interval_seconds=30, jwks_max_age_seconds=5)
HASTY_SHARED = replace(SHARED, announce_seconds=0, rotation_interval_seconds=60, propagation_seconds=5)


@dataclass(frozen=True)
class Token:
    """What a verifier looks at."""

    kid: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class Copy:
    """A JWKS as a verifier keeps it."""

    kids: frozenset[str]
    until: datetime


class Rotation(RuleBasedStateMachine):
    """People, workers and verifiers."""

    @initialize(rules=st.sampled_from([LOCAL, SHARED, HASTY, HASTY_SHARED]))
    def begin(self, rules: Rules) -> None:
        self.rules = rules
        self.now = T0
        self.numbers = count(1)
        self.written: list[tuple[datetime, Ring]] = []
        self.tokens: list[Token] = []
        self.copies: list[Copy] = []
        self.revoked: set[str] = set()
        self.hurried: dict[str, datetime] = {}
        self.alarmed_until = T0
        self.write(self.planner().generate(Ring(()), "RS256"))
        # Servers are started once every machine has the first ring.
        self.now += timedelta(seconds=rules.settled_seconds)

    def fresh(self) -> Iterator[tuple[str, PrivateKey]]:
        for number in self.numbers:
            yield f"k{number:04}", PRIVATE_KEY

    def planner(self) -> Planner:
        return Planner(self.rules, self.now, self.fresh())

    @property
    def ring(self) -> Ring:
        """As it was written last."""
        return self.written[-1][1]

    def write(self, ring: Ring) -> None:
        self.written.append((self.now, ring))

    def seen(self, lag: float, at: datetime | None = None) -> Ring:
        """The ring as a worker sees it that is late by a share of the propagation time."""
        late = lag * self.rules.propagation_seconds
        moment = (at or self.now) - timedelta(seconds=late)
        return next((ring for time, ring in reversed(self.written) if time <= moment), self.written[0][1])

    def clock(self, skew: float) -> datetime:
        """What a worker's clock says; half the skew off, so that two of them are never more than it apart."""
        return self.now + timedelta(seconds=skew * self.rules.skew_seconds / 2)

    def seen_keys(self, lag: float, skew: float) -> tuple[str, set[str]]:
        """What such a worker signs with, and what it publishes. A ring's time is never before it was written."""
        ring = self.seen(lag)
        moment = max(self.clock(skew), ring.written_at or T0)
        return ring.signing_key(moment).kid, {key.kid for key in ring.published_keys(moment)}

    # People

    @rule()
    def rotate(self) -> None:
        with suppress(ManagementError):
            self.write(self.planner().rotate(self.ring))

    @rule(ahead=st.sampled_from([0, 5, 301, 3600, DAY, 8 * DAY, 100 * DAY]))
    def rotate_at(self, ahead: int) -> None:
        with suppress(ManagementError):
            self.write(self.planner().rotate(self.ring, self.now + timedelta(seconds=ahead)))

    @rule()
    def prune(self) -> None:
        ring = self.planner().prune(self.ring)
        if ring != self.ring:
            self.write(ring)

    @rule()
    def rotate_if_due(self) -> None:
        ring = self.planner().rotate_if_due(self.ring)
        if ring is not None:
            self.write(ring)

    @rule()
    def generate(self) -> None:
        self.write(self.planner().generate(self.ring, "RS256"))

    @rule(which=st.integers(0, 10))
    def revoke(self, which: int) -> None:
        key = self.ring.keys[which % len(self.ring.keys)]
        ring = self.planner().revoke(self.ring, key.kid)
        self.revoked.add(key.kid)
        # What the command warns of: until then a verifier may not know the key that was put in its place.
        floor = timedelta(seconds=self.rules.floor_seconds(ring))
        for promoted in ring.keys:
            if promoted not in self.ring.keys and promoted.signs_from < promoted.published_at + floor:
                self.hurried[promoted.kid] = promoted.published_at + floor
        self.write(ring)

    @rule(max_age=st.sampled_from([5, 300, 3600, DAY]))
    def serve_with_another_max_age(self, max_age: int) -> None:
        """A server starts with another setting, and notes it."""
        self.rules = replace(self.rules, jwks_max_age_seconds=max_age)
        recorded = with_max_age(self.ring, self.now, self.rules)
        if find_problems(recorded, self.now, self.rules):
            # A turn that was too near to be put off is held to be early: nobody knows which copies are older than it.
            self.alarmed_until = self.now + timedelta(seconds=2 * self.rules.floor_seconds(recorded))
        floor = timedelta(seconds=self.rules.floor_seconds(recorded))
        for key in recorded.keys:
            if self.hurried.get(key.kid, T0) > self.now:
                self.hurried[key.kid] = key.published_at + floor
        if recorded != self.ring:
            self.write(recorded)

    @rule(seconds=st.sampled_from([1, 2, 7, 30, 61, 301, 400, 3600, DAY // 2, DAY, 8 * DAY, 91 * DAY]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.tokens = [token for token in self.tokens if token.expires_at > self.now]
        self.copies = [copy for copy in self.copies if copy.until > self.now]

    # Workers and verifiers

    @rule(lag=st.floats(0, 1), skew=st.floats(-1, 1), lifetime=st.sampled_from([1, 3600, DAY]))
    def issue(self, lag: float, skew: float, lifetime: int) -> None:
        clock = self.clock(skew)
        kid, _ = self.seen_keys(lag, skew)
        self.tokens.append(Token(kid, self.now, clock + timedelta(seconds=lifetime)))

    @rule(lag=st.floats(0, 1), skew=st.floats(-1, 1))
    def fetch(self, lag: float, skew: float) -> None:
        """A verifier whose copy has run out takes another."""
        _, kids = self.seen_keys(lag, skew)
        self.copies.append(Copy(frozenset(kids), self.now + timedelta(seconds=self.rules.jwks_max_age_seconds)))

    # What is always so

    def is_excused(self, token: Token) -> bool:
        return token.kid in self.revoked or token.issued_at < self.hurried.get(token.kid, T0)

    @invariant()
    def every_honest_token_is_verifiable_with_every_copy(self) -> None:
        for copy in self.copies:
            for token in self.tokens:
                assert token.kid in copy.kids or self.is_excused(token), (token, copy)

    @invariant()
    def every_honest_token_is_verifiable_with_every_jwks_of_this_moment(self) -> None:
        for lag in (0.0, 1.0):
            for skew in (-1.0, 1.0):
                _, kids = self.seen_keys(lag, skew)
                missing = [token for token in self.tokens if token.kid not in kids and not self.is_excused(token)]
                # A verifier allows a minute of leeway at most; a token that is over by then needs no key.
                assert not missing, (missing, kids)

    @invariant()
    def exactly_one_key_signs(self) -> None:
        states = [self.ring.state_of(key, self.now) for key in self.ring.keys]
        assert states.count(KeyState.SIGNING) == 1

    @invariant()
    def a_standby_is_announced_after_every_step(self) -> None:
        if self.written[-1][0] == self.now and self.ring.written_at == self.now:
            assert self.ring.standbys(self.now)

    @invariant()
    def workers_that_read_the_same_ring_never_differ(self) -> None:
        one, other = self.ring, Ring(tuple(reversed(self.ring.keys)), "RS256", self.ring.written_at)
        assert one.signing_key(self.now) == other.signing_key(self.now)
        assert one.published_keys(self.now) == other.published_keys(self.now)

    @invariant()
    def nobody_signs_with_what_another_does_not_publish(self) -> None:
        """Two workers, one propagation time and one skew apart."""
        for mine, theirs in ((0.0, 1.0), (1.0, 0.0)):
            for my_skew, their_skew in ((1.0, -1.0), (-1.0, 1.0)):
                signing, _ = self.seen_keys(mine, my_skew)
                _, published = self.seen_keys(theirs, their_skew)
                excused = signing in self.revoked or self.hurried.get(signing, T0) > self.now
                assert signing in published or excused

    @invariant()
    def no_step_of_a_command_is_ever_found_unsafe(self) -> None:
        excused = any(time > self.now for time in self.hurried.values()) or self.alarmed_until > self.now
        if not excused:
            assert find_problems(self.ring, self.now, self.rules) == []
            if len(self.written) > 1 and self.written[-1][0] == self.now:
                assert find_unsafe_changes(self.written[-2][1], self.ring, self.now, self.rules) == []

    @precondition(lambda self: len(self.written) > 1)
    @rule()
    def a_ring_of_another_algorithm_has_no_signer(self) -> None:
        other = replace(self.ring, signing_alg="ES256")
        with pytest.raises(StartError, match="keep TOKENHOUSE_SIGNING_ALG=RS256"):
            other.signing_key(self.now)
        assert other.published_keys(self.now) == self.ring.published_keys(self.now)


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
