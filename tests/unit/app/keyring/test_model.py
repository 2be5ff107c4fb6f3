"""The states of keys: a pure function of the ring and the clock. A table for people, hypothesis for all rings."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import permutations
from random import Random
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import assume, given
from hypothesis import strategies as st

from app.errors import StartError
from app.keyring.model import RETIRE_AFTER, KeyState, Ring, SigningKey, Span

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)
DAY = 24 * HOUR
ANNOUNCED, SIGNING, RETIRING, GONE, REVOKED = KeyState


@cache
def private_key() -> rsa.RSAPrivateKey:
    """One key for all: states look at times only."""
    return rsa.generate_private_key(65537, 2048)


def key(kid: str, published: timedelta, signs: timedelta, revoked: timedelta | None = None) -> SigningKey:
    revoked_at = None if revoked is None else T0 + revoked
    return SigningKey(kid, "RS256", T0 + published, T0 + signs, revoked_at, private_key())


# a signs from the start; b is announced on day 10 and signs from day 17; c on day 17 and from day 24.
RING = Ring((key("a", 0 * DAY, 0 * DAY), key("b", 10 * DAY, 17 * DAY), key("c", 17 * DAY, 24 * DAY)))


class Moment(NamedTuple):
    """What must be seen at a time."""

    time: timedelta
    states: str
    published: str
    signing: str


@pytest.mark.parametrize(
    "moment",
    [
        Moment(0 * DAY, "signing announced announced", "a", "a"),
        Moment(10 * DAY - TICK, "signing announced announced", "a", "a"),
        Moment(10 * DAY, "signing announced announced", "a b", "a"),
        Moment(17 * DAY - TICK, "signing announced announced", "a b", "a"),
        Moment(17 * DAY, "retiring signing announced", "a b c", "b"),
        Moment(17 * DAY + RETIRE_AFTER - TICK, "retiring signing announced", "a b c", "b"),
        Moment(17 * DAY + RETIRE_AFTER, "gone signing announced", "b c", "b"),
        Moment(24 * DAY - TICK, "gone signing announced", "b c", "b"),
        Moment(24 * DAY, "gone retiring signing", "b c", "c"),
        Moment(24 * DAY + RETIRE_AFTER, "gone gone signing", "c", "c"),
        Moment(3650 * DAY, "gone gone signing", "c", "c"),
    ],
    ids=lambda moment: f"{moment.time}",
)
def test_states_over_time(moment: Moment) -> None:
    now = T0 + moment.time
    for keys in permutations(RING.keys):
        ring = Ring(keys)
        assert " ".join(ring.state_of(each, now) for each in RING.keys) == moment.states
        assert " ".join(each.kid for each in ring.published_keys(now)) == moment.published
        assert ring.signing_key(now).kid == moment.signing


def test_a_key_retires_for_the_longest_life_of_a_token_and_a_minute() -> None:
    assert timedelta(hours=24, seconds=60) == RETIRE_AFTER


def test_the_standby_signs_in_place_of_a_revoked_key_and_a_key_that_was_succeeded_never_again() -> None:
    """The one that verifiers know: ``a`` has left the JWKS, and ``d`` was announced after ``c``."""
    ring = Ring(
        (
            key("a", 0 * DAY, 0 * DAY),
            key("b", 1 * DAY, 2 * DAY, revoked=10 * DAY),
            key("c", 8 * DAY, 15 * DAY),
            key("d", 9 * DAY, 14 * DAY),
        )
    )
    a, b, c, d = ring.keys
    for time, signing, states in (
        (10 * DAY - TICK, b, [GONE, SIGNING, ANNOUNCED, ANNOUNCED]),
        (10 * DAY, c, [GONE, REVOKED, SIGNING, ANNOUNCED]),
        (14 * DAY, d, [GONE, REVOKED, ANNOUNCED, SIGNING]),
        (15 * DAY, c, [GONE, REVOKED, SIGNING, RETIRING]),
    ):
        assert ring.signing_key(T0 + time) == signing
        assert [ring.state_of(each, T0 + time) for each in (a, b, c, d)] == states
    assert ring.published_keys(T0 + 10 * DAY) == (d, c)


def test_a_key_that_retires_does_not_sign_again_either() -> None:
    ring = Ring((key("a", 0 * DAY, 0 * DAY), key("b", 1 * DAY, 2 * DAY, revoked=2 * DAY + HOUR)))
    (a, _) = ring.keys
    after = T0 + 2 * DAY + HOUR
    with pytest.raises(StartError):
        ring.signing_key(after)
    assert ring.published_keys(after) == (a,)


def test_a_key_that_is_revoked_before_its_time_never_signs() -> None:
    ring = Ring((key("a", 0 * DAY, 0 * DAY), key("b", 1 * DAY, 3 * DAY, revoked=2 * DAY)))
    for time in (2 * DAY, 3 * DAY, 30 * DAY):
        assert ring.signing_key(T0 + time).kid == "a"
        assert [each.kid for each in ring.published_keys(T0 + time)] == ["a"]


def test_of_two_keys_of_one_time_the_kid_settles_who_signs() -> None:
    ring = Ring((key("b", 0 * DAY, 0 * DAY), key("a", 0 * DAY, 0 * DAY)))
    assert ring.signing_key(T0).kid == "b"
    assert [ring.state_of(each, T0) for each in ring.keys] == [SIGNING, RETIRING]


def test_a_ring_whose_time_has_not_come_says_when() -> None:
    ring = Ring((key("b", 0 * DAY, 9 * DAY), key("a", 0 * DAY, 8 * DAY), key("c", 0 * DAY, 7 * DAY, revoked=0 * DAY)))
    with pytest.raises(StartError) as caught:
        ring.signing_key(T0)
    assert str(caught.value) == (
        "the key ring has no key that may sign now: the first may sign from 2026-01-09T00:00:00+00:00 on"
    )


def test_a_ring_whose_keys_are_all_revoked_says_what_to_do() -> None:
    ring = Ring((key("a", 0 * DAY, 0 * DAY, revoked=1 * DAY),))
    with pytest.raises(StartError) as caught:
        ring.signing_key(T0 + 1 * DAY)
    assert str(caught.value) == "the key ring has no key that may sign now: `flask keys generate` makes one"
    assert ring.published_keys(T0 + 1 * DAY) == ()


def test_two_keys_of_one_kid_are_refused() -> None:
    with pytest.raises(StartError) as caught:
        Ring((key("a", 0 * DAY, 0 * DAY), key("b", 0 * DAY, 0 * DAY), key("a", 1 * DAY, 1 * DAY)))
    assert str(caught.value) == "the key ring has kid 'a' twice: each key needs a kid of its own"


def test_the_jwk_holds_public_members_only() -> None:
    (a, *_) = RING.keys
    numbers = private_key().public_key().public_numbers()
    assert list(a.public_jwk) == ["kty", "kid", "use", "alg", "n", "e"]
    assert {name: a.public_jwk[name] for name in ("kty", "kid", "use", "alg", "e")} == {
        "kty": "RSA",
        "kid": "a",
        "use": "sig",
        "alg": "RS256",
        "e": "AQAB",
    }
    assert numbers.e == 65537
    assert repr(a) == "SigningKey(a)"


# For all rings


hours = st.integers(0, 100).map(lambda number: number * HOUR)


@st.composite
def rings(draw: st.DrawFn) -> Ring:
    """Rings as a file may hold them: no key signs before it is published."""
    keys = []
    for number in range(draw(st.integers(1, 5))):
        published, wait = draw(hours), draw(hours)
        revoked = draw(st.none() | hours)
        keys.append(key(f"k{number}", published, published + wait, revoked))
    return Ring(tuple(draw(st.permutations(keys))))


def is_revoked(each: SigningKey, now: datetime) -> bool:
    return each.revoked_at is not None and each.revoked_at <= now


def signer(ring: Ring, now: datetime) -> SigningKey | None:
    """Told another way than the ring does: walk through the keys in the order of their turns."""
    turns = sorted(ring.keys, key=lambda each: (each.signs_from, each.kid))
    begun = [each for each in turns if each.signs_from <= now and not is_revoked(each, each.signs_from)]
    if not begun:
        return None
    if not is_revoked(begun[-1], now):
        return begun[-1]
    waiting = turns[turns.index(begun[-1]) + 1 :]
    known = [each for each in waiting if each.published_at <= now and not is_revoked(each, now)]
    return min(known, key=lambda each: (each.published_at, each.signs_from, each.kid), default=None)


def changes(ring: Ring) -> Sequence[datetime]:
    return sorted(
        {time for each in ring.keys for time in (each.published_at, each.signs_from, each.revoked_at) if time}
    )


moments = st.tuples(
    st.integers(-5, 250).map(lambda number: number * HOUR), st.sampled_from([-TICK, 0 * TICK, TICK, 60 * 10**6 * TICK])
)


@given(rings(), moments)
def test_exactly_one_key_signs_while_any_may(ring: Ring, moment: tuple[timedelta, timedelta]) -> None:
    now = T0 + sum(moment, timedelta())
    signing = [each for each in ring.keys if ring.state_of(each, now) is SIGNING]
    expected = signer(ring, now)
    assert signing == ([expected] if expected else [])
    if expected is None:
        with pytest.raises(StartError):
            ring.signing_key(now)
    else:
        assert ring.signing_key(now) == expected


@given(rings(), moments, st.integers(1, 250))
def test_a_key_that_is_gone_never_signs_again(
    ring: Ring, moment: tuple[timedelta, timedelta], hours_later: int
) -> None:
    now = T0 + sum(moment, timedelta())
    gone = [each for each in ring.keys if ring.state_of(each, now) is GONE]
    later = now + hours_later * HOUR
    assert all(ring.state_of(each, later) in {GONE, REVOKED} for each in gone)
    assert not set(gone) & set(ring.published_keys(later))


@given(rings(), moments)
def test_every_key_that_signed_lately_is_published_unless_it_was_revoked(
    ring: Ring, moment: tuple[timedelta, timedelta]
) -> None:
    now = T0 + sum(moment, timedelta())
    window = [now - RETIRE_AFTER + TICK, *(time for time in changes(ring) if now - RETIRE_AFTER < time <= now), now]
    signed = {each.kid for time in window if (each := signer(ring, time))}
    revoked = {each.kid for each in ring.keys if each.revoked_at and each.revoked_at <= now}
    published = {each.kid for each in ring.published_keys(now)}
    assert signed - revoked <= published
    assert not revoked & published


@given(rings(), moments)
def test_a_key_is_published_before_it_may_sign_and_never_too_early(
    ring: Ring, moment: tuple[timedelta, timedelta]
) -> None:
    now = T0 + sum(moment, timedelta())
    published = ring.published_keys(now)
    assert all(each.published_at <= now for each in published)
    for each in ring.keys:
        if each.published_at <= now < each.signs_from and not (each.revoked_at and each.revoked_at <= now):
            assert each in published
            assert ring.state_of(each, now) in {ANNOUNCED, SIGNING}


@given(rings(), moments, st.randoms(use_true_random=False))
def test_the_order_of_entries_does_not_matter(ring: Ring, moment: tuple[timedelta, timedelta], random: Random) -> None:
    now = T0 + sum(moment, timedelta())
    shuffled = list(ring.keys)
    random.shuffle(shuffled)
    other = Ring(tuple(shuffled))
    assert other.published_keys(now) == ring.published_keys(now)
    assert [other.state_of(each, now) for each in ring.keys] == [ring.state_of(each, now) for each in ring.keys]
    assert other.changes() == ring.changes()


@given(rings(), moments, st.floats(0, 1, exclude_max=True))
def test_nothing_changes_before_the_next_change(
    ring: Ring, moment: tuple[timedelta, timedelta], fraction: float
) -> None:
    now = T0 + sum(moment, timedelta())
    following = next((time for time in ring.changes() if time > now), None)
    later = now + (fraction * (following - now) if following else timedelta(days=1000))
    assume(following is None or later < following)
    assert following is None or following > now
    assert [ring.state_of(each, later) for each in ring.keys] == [ring.state_of(each, now) for each in ring.keys]
    assert ring.published_keys(later) == ring.published_keys(now)


@given(rings(), moments)
def test_at_the_next_change_a_key_enters_another_state(ring: Ring, moment: tuple[timedelta, timedelta]) -> None:
    def states(time: datetime) -> list[KeyState | None]:
        return [ring.state_of(each, time) if each.published_at <= time else None for each in ring.keys]

    now = T0 + sum(moment, timedelta())
    following = ring.next_change(now)
    if following is None:
        assert states(now + timedelta(days=10_000)) == states(now)
    else:
        assert states(following - TICK) == states(now) != states(following)


@given(rings(), moments, moments)
def test_a_phase_tells_what_holds_for_as_long_as_it_holds(
    ring: Ring, moment: tuple[timedelta, timedelta], another: tuple[timedelta, timedelta]
) -> None:
    phase = ring.phase(T0 + sum(moment, timedelta()))
    assert phase.start <= T0 + sum(moment, timedelta()) < phase.end
    now = T0 + sum(another, timedelta())
    assume(phase.start <= now < phase.end)
    assert phase.published_keys == ring.published_keys(now)
    assert phase.signers.get(ring.signing_alg) == signer(ring, now)
    assert list(phase.signers.values()) == ring.usable(now)


@given(rings(), moments)
def test_one_phase_ends_where_the_next_begins(ring: Ring, moment: tuple[timedelta, timedelta]) -> None:
    phase = ring.phase(T0 + sum(moment, timedelta()))
    if phase.end != datetime.max.replace(tzinfo=UTC):
        assert ring.phase(phase.end - TICK) == phase
        assert ring.phase(phase.end).start == phase.end
    if phase.start != datetime.min.replace(tzinfo=UTC):
        assert ring.phase(phase.start) == phase
        assert ring.phase(phase.start - TICK).end == phase.start


@given(rings(), st.integers(-5, 250))
def test_states_only_move_forward_while_nothing_is_revoked(ring: Ring, hour: int) -> None:
    assume(all(each.revoked_at is None for each in ring.keys))
    order = [ANNOUNCED, SIGNING, RETIRING, GONE]
    now, later = T0 + hour * HOUR, T0 + (hour + 1) * HOUR
    for each in ring.keys:
        assert order.index(ring.state_of(each, now)) <= order.index(ring.state_of(each, later))


def test_the_spans_of_a_key_are_its_states_one_after_the_other() -> None:
    b = RING.keys[1]
    ends = [10 * DAY, 17 * DAY, 24 * DAY, 24 * DAY + RETIRE_AFTER]
    assert RING.spans(b) == [
        Span(ANNOUNCED, T0 + ends[0], T0 + ends[1]),
        Span(SIGNING, T0 + ends[1], T0 + ends[2]),
        Span(RETIRING, T0 + ends[2], T0 + ends[3]),
        Span(GONE, T0 + ends[3], None),
    ]
    assert RING.since(b, T0) == T0 + 10 * DAY
    assert RING.since(b, T0 + 17 * DAY - TICK) == T0 + 10 * DAY
    assert RING.since(b, T0 + 17 * DAY) == T0 + 17 * DAY


def test_a_key_that_was_given_up_does_not_sign_and_none_in_its_place() -> None:
    a = replace(RING.keys[0], signs_until=T0 + DAY)
    ring = Ring((a,))
    assert ring.signing_key(T0 + DAY - TICK) is a
    with pytest.raises(StartError):
        ring.signing_key(T0 + DAY)
    assert ring.phase(T0 + DAY).signers == {}


def test_each_algorithm_has_a_signer_of_its_own() -> None:
    first, second = (replace(key, alg="ES256") for key in RING.keys[:2])
    rsa = replace(RING.keys[0], kid="rsa")
    ring = Ring((rsa, first, second))
    assert ring.signing_key(T0) is rsa
    assert ring.signing_key(T0, "ES256") is first
    assert ring.signing_key(T0 + 17 * DAY, "ES256") is second
    assert ring.standbys(T0, "ES256") == [second]
    with pytest.raises(StartError, match="the key ring has no EdDSA key that may sign now: `flask keys generate --alg"):
        ring.signing_key(T0, "EdDSA")
    later = "the key ring has no ES256 key that may sign now: the first may sign from "
    with pytest.raises(StartError, match=later):
        Ring((rsa, second)).signing_key(T0, "ES256")
