"""Each step of the plan on a ring that is known to the second; that no step breaks a verifier is in ``over_time``."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app.errors import ManagementError
from app.keyring.model import RETIRE_AFTER, Ring, SigningKey
from app.keyring.rotation_plan import FORGET_AFTER, NewKeys, Planner, Rules, find, rotation_due, with_max_age
from app.keyring.validation import find_problems, find_unsafe_changes

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
RULES = Rules(
    announce_seconds=7 * 86400,
    rotation_interval_seconds=90 * 86400,
    jwks_max_age_seconds=300,
    propagation_seconds=10,
    skew_seconds=60,
)
SETTLED = timedelta(seconds=71)
FLOOR = timedelta(seconds=371)


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def fresh() -> NewKeys:
    numbers: Iterator[int] = count(1)
    return ((f"new{number}", private_key()) for number in numbers)


def planner(now: datetime = T0, rules: Rules = RULES) -> Planner:
    return Planner(rules, now, fresh())


def key(kid: str, published: timedelta, signs: timedelta, alg: str = "RS256", **more: object) -> SigningKey:
    made = SigningKey(kid, alg, T0 + published, T0 + signs, None, private_key(), jwks_max_age=300)
    return replace(made, **more)  # type: ignore[arg-type]


# a signs; b is announced and signs after 50 days.
RING = Ring((key("a", -40 * DAY, -40 * DAY), key("b", -40 * DAY, 50 * DAY)), written_at=T0 - 40 * DAY)


def times(ring: Ring) -> dict[str, datetime]:
    return {one.kid: one.signs_from for one in ring.keys}


def refusal(act: object, *arguments: object, **options: object) -> str:
    with pytest.raises(ManagementError) as caught:
        act(*arguments, **options)  # type: ignore[operator]
    return str(caught.value)


def test_what_is_safe_is_counted_in_seconds() -> None:
    assert timedelta(seconds=RULES.settled_seconds) == SETTLED
    assert timedelta(seconds=RULES.floor_seconds(RING)) == FLOOR
    longer = Ring((replace(RING.keys[0], jwks_max_age=500), RING.keys[1]))
    assert RULES.floor_seconds(longer) == 571
    assert RULES.known_from(RING, RING.keys[0]) == T0 - 40 * DAY + FLOOR
    assert RULES.safe_from(RING, T0) == T0 + 7 * DAY
    assert replace(RULES, announce_seconds=0).safe_from(RING, T0) == T0 + FLOOR
    assert RULES.safe_after(RING, RING.keys[1], T0 + SECOND / 2) == T0 + SECOND + SETTLED


def test_a_first_key_signs_at_once_and_gets_a_standby() -> None:
    ring = planner(T0 + SECOND / 2).generate(Ring(()), "RS256")
    assert times(ring) == {"new1": T0, "new2": T0 + 90 * DAY}
    assert ring.written_at == T0
    assert {one.published_at for one in ring.keys} == {T0}
    assert {one.jwks_max_age for one in ring.keys} == {300}
    assert refusal(planner().generate, Ring(()), "ES256") == (
        "a first key signs at once, so it must be of RS256 (TOKENHOUSE_SIGNING_ALG)"
    )


def test_a_further_key_is_announced_until_it_is_known() -> None:
    ring = planner(T0 + SECOND / 2).generate(RING, "ES256")
    assert times(ring)["new1"] == T0 + SECOND + 7 * DAY
    assert ring.find("new1").alg == "ES256"  # type: ignore[union-attr]


def test_rotating_lets_the_standby_sign_as_soon_as_all_have_heard_and_announces_the_next() -> None:
    ring = planner().rotate(RING)
    assert times(ring) == {"a": T0 - 40 * DAY, "b": T0 + SETTLED, "new1": T0 + SETTLED + 90 * DAY}
    assert not ring.find("b").is_unsafe  # type: ignore[union-attr]


def test_rotating_a_standby_that_is_new_waits_until_it_is_known() -> None:
    ring = Ring((RING.keys[0], key("b", timedelta(0), 50 * DAY)))
    assert times(planner().rotate(ring))["b"] == T0 + 7 * DAY
    unsafe = planner().rotate(ring, unsafe=True)
    assert times(unsafe)["b"] == T0 + SETTLED
    assert unsafe.find("b").is_unsafe  # type: ignore[union-attr]
    assert not planner().rotate(RING, unsafe=True).find("b").is_unsafe  # type: ignore[union-attr]


def test_a_rotation_that_moves_nothing_and_announces_nothing_is_refused() -> None:
    """With a further standby behind it. Without one the rotation announces that, and leaves the first where it is."""
    soon = Ring((RING.keys[0], key("b", -40 * DAY, SETTLED), key("c", -40 * DAY, 60 * DAY)))
    assert refusal(planner().rotate, soon) == (
        f"b signs from {(T0 + SETTLED).strftime('%Y-%m-%dT%H:%M:%SZ')} on, and sooner is not safe: nothing was changed"
    )
    alone = planner().rotate(Ring(soon.keys[:2]))
    assert times(alone) == {"a": T0 - 40 * DAY, "b": T0 + SETTLED, "new1": T0 + SETTLED + 90 * DAY}
    moved = planner().rotate(Ring((RING.keys[0], key("b", -40 * DAY, SETTLED + SECOND), soon.keys[2])))
    assert times(moved) == {"a": T0 - 40 * DAY, "b": T0 + SETTLED, "c": T0 + 60 * DAY}


def test_a_rotation_at_a_time_is_in_between() -> None:
    followed = Ring((*RING.keys, key("c", -40 * DAY, 60 * DAY)))
    assert times(planner().rotate(RING, at=T0 + SETTLED))["b"] == T0 + SETTLED
    assert times(planner().rotate(followed, at=T0 + 60 * DAY - SECOND))["b"] == T0 + 60 * DAY - SECOND
    assert times(planner().rotate(followed, at=T0 + 55 * DAY + SECOND / 2))["b"] == T0 + 55 * DAY + SECOND
    earliest = (T0 + SETTLED).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert refusal(planner().rotate, RING, T0 - SECOND) == (
        f"2025-12-31T23:59:59Z is over: the earliest safe time is {earliest}"
    )
    assert refusal(planner().rotate, RING, T0) == (
        f"b would sign from 2026-01-01T00:00:00Z on, before verifiers know it: the earliest safe time is {earliest}"
    )
    assert refusal(planner().rotate, followed, T0 + 60 * DAY) == (
        "c signs from 2026-03-02T00:00:00Z on: b must sign before it"
    )
    assert refusal(planner().rotate, followed, T0 + 50 * DAY).endswith("nothing was changed")


def test_nothing_is_rotated_where_nothing_signs() -> None:
    later = Ring((key("b", -DAY, DAY),))
    for act in (planner().rotate, planner().rotate_if_due):
        assert refusal(act, Ring(())).startswith("the key ring has no key that may sign now")
    assert refusal(planner().rotate, later).startswith("the key ring has no key that may sign now")
    assert refusal(rotation_due, Ring(()), T0, RULES).startswith("the key ring has no key that may sign now")
    assert refusal(find, RING, "c") == "there is no key 'c': `flask keys list` shows all"
    assert find(RING, "b") is RING.keys[1]


def test_a_rotation_is_due_when_the_key_has_signed_for_the_interval() -> None:
    due = T0 + 50 * DAY
    assert rotation_due(RING, T0, RULES) == due
    late = Ring((RING.keys[0], key("b", -40 * DAY, 80 * DAY)))
    assert planner(due - SECOND).rotate_if_due(late) is None
    rotated = planner(due).rotate_if_due(late)
    assert rotated is not None
    assert times(rotated)["b"] == due + SETTLED
    # It signs as early as is safe already.
    assert planner(due).rotate_if_due(Ring((RING.keys[0], key("b", -40 * DAY, 50 * DAY + SETTLED)))) is None


def test_a_missing_standby_is_due_at_once() -> None:
    ring = planner(T0 + SECOND / 2).rotate_if_due(Ring(RING.keys[:1]))
    assert ring is not None
    assert times(ring) == {"a": T0 - 40 * DAY, "new1": T0 + 50 * DAY}
    assert ring.written_at == T0
    old = planner(T0 + 49 * DAY).rotate_if_due(Ring(RING.keys[:1]))
    assert old is not None
    assert times(old)["new1"] == T0 + 56 * DAY


def test_the_standby_signs_at_once_in_place_of_a_revoked_key() -> None:
    ring = planner(T0 + SECOND / 2).revoke(RING, "a")
    assert times(ring) == {"a": T0 - 40 * DAY, "b": T0, "new1": T0 + 90 * DAY}
    assert ring.find("a").revoked_at == T0  # type: ignore[union-attr]
    assert planner(T0 + DAY).revoke(ring, "a") is ring
    alone = planner().revoke(Ring(RING.keys[:1]), "a")
    assert times(alone) == {"a": T0 - 40 * DAY, "new1": T0, "new2": T0 + 90 * DAY}


def test_a_revoked_standby_is_replaced_and_nothing_else_changes() -> None:
    ring = planner().revoke(RING, "b")
    assert times(ring) == {"a": T0 - 40 * DAY, "b": T0 + 50 * DAY, "new1": T0 + 50 * DAY}
    other = Ring((*RING.keys, key("e", -DAY, DAY, "ES256")))
    assert [one.kid for one in planner().revoke(other, "e").keys] == ["a", "b", "e"]
    assert refusal(planner().revoke, RING, "c") == "there is no key 'c': `flask keys list` shows all"


def test_a_revocation_that_was_planned_comes_at_once() -> None:
    planned = Ring((replace(RING.keys[0], revoked_at=T0 + DAY), RING.keys[1]))
    ring = planner().revoke(planned, "a")
    assert ring.find("a").revoked_at == T0  # type: ignore[union-attr]
    assert times(ring)["b"] == T0


def test_of_several_standbys_the_one_that_was_published_first_takes_over() -> None:
    ring = Ring((RING.keys[0], key("b", -2 * DAY, 20 * DAY), key("c", -3 * DAY, 30 * DAY)))
    assert times(planner().revoke(ring, "a")) == {"a": T0 - 40 * DAY, "b": T0 + 20 * DAY, "c": T0}
    unborn = Ring((RING.keys[0], key("b", DAY, 20 * DAY)))
    assert times(planner().revoke(unborn, "a"))["new1"] == T0


def test_an_algorithm_is_given_up_when_another_one_signs() -> None:
    mixed = replace(RING, keys=(*RING.keys, key("e", -40 * DAY, -40 * DAY, "ES256"), key("f", -DAY, DAY, "ES256")))
    ring = planner(T0 + SECOND / 2).retire(mixed, "ES256")
    ends = {one.kid: one.signs_until for one in ring.keys}
    assert ends == {"a": None, "b": None, "e": T0 + SECOND + SETTLED, "f": T0 + SECOND + SETTLED}
    assert ring.written_at == T0
    assert refusal(planner().retire, mixed, "RS256") == (
        "RS256 is what signs (TOKENHOUSE_SIGNING_ALG): set another first"
    )
    for nothing in (RING, ring):
        assert refusal(planner().retire, nothing, "ES256") == "the key ring has no ES256 key in use"
    revoked = replace(mixed, keys=tuple(replace(one, revoked_at=T0) for one in mixed.keys if one.alg == "ES256"))
    assert refusal(planner().retire, revoked, "ES256") == "the key ring has no ES256 key in use"
    silent = Ring(mixed.keys[2:], signing_alg="RS256")
    assert refusal(planner().retire, silent, "ES256").startswith("the key ring has no RS256 key that may sign now")


def test_a_key_is_forgotten_when_it_has_been_gone_for_long() -> None:
    old = Ring((key("z", -200 * DAY, -200 * DAY), *RING.keys))
    gone_at = T0 - 40 * DAY + RETIRE_AFTER
    before = planner(gone_at + FORGET_AFTER - SECOND)
    assert before.prune(old) is old
    pruned = planner(gone_at + FORGET_AFTER).prune(old)
    assert [one.kid for one in pruned.keys] == ["a", "b"]
    assert pruned.written_at == gone_at + FORGET_AFTER
    revoked = Ring((*RING.keys, key("y", -31 * DAY, 70 * DAY, revoked_at=T0 - FORGET_AFTER)))
    assert [one.kid for one in planner().prune(revoked).keys] == ["a", "b"]
    assert planner(T0 - SECOND).prune(revoked) is revoked
    unpublished = Ring((*RING.keys, key("x", -29 * DAY, 70 * DAY, revoked_at=T0 - 31 * DAY)))
    assert planner().prune(unpublished) is unpublished


@pytest.mark.parametrize(("signs", "is_safe"), [(timedelta(), False), (FLOOR, True)])
def test_an_edit_that_lets_a_key_for_apis_sign_too_early_is_refused(signs: timedelta, is_safe: bool) -> None:  # noqa: FBT001
    old = Ring((*RING.keys, key("es-a", -40 * DAY, -40 * DAY, "ES256")), written_at=RING.written_at)
    early = key("es-b", timedelta(), signs, "ES256")
    found = find_unsafe_changes(old, Ring((*old.keys, early), written_at=old.written_at), T0, RULES)
    told = "es-b would sign from 2026-01-01T00:00:00Z on, before verifiers know it: it is published at "
    assert [each.startswith(told) for each in found] == ([] if is_safe else [True])


def test_an_algorithm_of_apis_may_be_given_up_and_the_servers_may_not() -> None:
    es = key("es", -40 * DAY, -40 * DAY, "ES256", signs_until=T0 + DAY)
    assert find_problems(Ring((*RING.keys, es)), T0, RULES) == []
    assert find_problems(Ring((*RING.keys, es), "ES256"), T0, RULES) == ["no key may sign from 2026-01-02T00:00:00Z on"]


LONGER = replace(RULES, jwks_max_age_seconds=900)
KNOWN = timedelta(seconds=971)


@pytest.mark.parametrize(
    ("signs", "is_unsafe", "becomes"),
    [
        (KNOWN - SECOND, False, KNOWN),
        (KNOWN, False, KNOWN),
        (KNOWN + SECOND, False, KNOWN + SECOND),
        (SETTLED + SECOND, False, KNOWN),
        # So near that a machine may not hear of it in time.
        (SETTLED, False, SETTLED),
        (SETTLED - SECOND, False, SETTLED - SECOND),
        (KNOWN - SECOND, True, KNOWN - SECOND),
    ],
)
def test_a_longer_cache_time_postpones_a_standby_that_not_all_would_know(
    signs: timedelta, becomes: timedelta, *, is_unsafe: bool
) -> None:
    ring = Ring((RING.keys[0], key("b", timedelta(0), signs, is_unsafe=is_unsafe)))
    longer = with_max_age(ring, T0, LONGER)
    assert times(longer)["b"] == T0 + becomes
    assert {one.jwks_max_age for one in longer.keys} == {900}


def test_a_cache_time_is_recorded_at_keys_that_are_published_and_never_falls() -> None:
    ring = Ring((*RING.keys, key("later", DAY, 60 * DAY)))
    assert [one.jwks_max_age for one in with_max_age(ring, T0, LONGER).keys] == [900, 900, 300]
    assert with_max_age(ring, T0, RULES) is ring
    assert with_max_age(ring, T0, replace(RULES, jwks_max_age_seconds=299)) is ring


def test_a_standby_follows_a_key_that_begins_and_is_revoked_soon() -> None:
    """The kid would decide between two that begin at the same moment."""
    soon = key("p", -DAY, 5 * SECOND, revoked_at=T0 + 10 * SECOND)
    other = key("e", -DAY, 8 * SECOND, "ES256", revoked_at=T0 + 10 * SECOND)
    assert times(planner().revoke(replace(RING, keys=(*RING.keys, soon, other)), "a"))["b"] == T0 + 6 * SECOND


def test_an_empty_ring_has_no_longer_cache_time_than_the_rules() -> None:
    assert RULES.floor_seconds(Ring(())) == replace(RULES, jwks_max_age_seconds=0).floor_seconds(Ring(())) + 300


def test_a_standby_that_signs_exactly_when_it_is_known_is_not_unsafe() -> None:
    ring = Ring((RING.keys[0], key("b", SETTLED - FLOOR, 50 * DAY)))
    rotated = planner().rotate(ring, unsafe=True)
    assert times(rotated)["b"] == T0 + SETTLED == RULES.known_from(ring, ring.keys[1])
    assert not rotated.find("b").is_unsafe  # type: ignore[union-attr]
