"""Validation of a ring, and of a change that somebody else made: an edit or a deployment. Pure.

Changes of ``rotation_plan`` never fail here.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

from app.config.values import format_time
from app.errors import StartError
from app.keyring.model import RETIRE_AFTER, KeyState, Ring, SigningKey
from app.keyring.rotation_plan import CLOCK_SKEW_SECONDS, Rules, signing_or_none


def find_problems(ring: Ring, now: datetime, rules: Rules) -> list[str]:
    """Return every step of ``ring``, future or recent, that could break a verifier: one line each."""
    found = []
    try:
        ring.signing_key(now)
    except StartError as error:
        found.append(str(error))
    # Keys of other algorithms may sign the tokens of APIs.
    for alg in sorted({ring.signing_alg, *(key.alg for key in ring.keys)}):
        found += _problems_of_algorithm(replace(ring, signing_alg=alg), now, rules, may_end=alg != ring.signing_alg)
    return found


def _problems_of_algorithm(ring: Ring, now: datetime, rules: Rules, *, may_end: bool) -> Iterator[str]:
    """Yield the steps of the algorithm that signs in ``ring``.

    :param may_end: whether the algorithm may be given up.
    """
    floor = timedelta(seconds=rules.floor_seconds(ring))
    for before, time in pairwise([now - floor, *(time for time in ring.changes() if time > now - floor)]):
        signs = signing_or_none(ring, time)
        if signs is None:
            if not may_end and time > now and signing_or_none(ring, before):
                yield f"no key may sign from {format_time(time)} on"
        elif _takes_over(ring, signs, time, rules) and (early := _too_early(ring, signs, time, rules)):
            yield early


def find_unsafe_changes(old: Ring, new: Ring, now: datetime, rules: Rules) -> list[str]:
    """Return what is wrong with changing from ``old`` to ``new`` now, seen by a worker with ``old``: one line each."""
    found = []
    if new.written_at and new.written_at > now + timedelta(seconds=CLOCK_SKEW_SECONDS):
        found.append(
            f"it was written at {format_time(new.written_at)}, and it is {format_time(now)} here: one of the two "
            "clocks is wrong"
        )
    settled = timedelta(seconds=rules.settled_seconds)
    published = old.published_keys(now)
    for key in old.keys:
        successor = new.find(key.kid)
        # Of other algorithms too: a server with an older setting may sign with it.
        is_live = key in published and key.signs_from <= now
        if key.revoked_at is not None:
            if successor and (successor.revoked_at is None or successor.revoked_at > max(now, key.revoked_at)):
                found.append(f"{key.kid} was revoked and cannot come back")
        elif successor and successor.public_jwk != key.public_jwk:
            found.append(f"{key.kid} is another key now: a new key needs a kid of its own")
        elif is_live and (successor is None or _leaves_early(new, successor, now)):
            last = old.spans(key)[-1]
            until = last.start if last.state is KeyState.GONE else now + RETIRE_AFTER
            found.append(
                f"{key.kid} would leave the JWKS while tokens of it are alive: the earliest safe time is "
                f"{format_time(until)}"
            )
    if new.written_at == old.written_at:
        # An edit by hand: claiming that a key was published long ago does not make verifiers know it.
        seen = {key.kid for key in old.keys}
        new = replace(
            new,
            keys=tuple(
                key if key.kid in seen else replace(key, published_at=max(key.published_at, now - settled))
                for key in new.keys
            ),
        )
    return found + find_problems(new, now, rules)


def find_warnings(ring: Ring, now: datetime, rules: Rules) -> list[str]:
    """Return what is safe and still not as it should be: one line each."""
    found = []
    if not ring.standbys(now):
        found.append("no standby is announced: `flask keys rotate --if-due` announces one")
    for key in ring.standbys(now):
        wished = key.published_at + timedelta(seconds=rules.announce_seconds)
        if key.signs_from < wished and not key.is_unsafe:
            found.append(
                f"{key.kid} is announced for less than TOKENHOUSE_KEY_ANNOUNCE: that would be until "
                f"{format_time(wished)}"
            )
    found += [
        f"{key.kid} signs from {format_time(key.signs_from)} on, as --unsafe said: until {format_time(known)} a "
        "verifier may have a JWKS without it, and refuse its tokens"
        for key in ring.keys
        if key.is_unsafe and key.revoked_at is None and now < (known := rules.known_from(ring, key))
    ]
    algs = sorted({key.alg for key in ring.published_keys(now)})
    if len(algs) > 1:
        found.append(f"the JWKS has keys of {' and '.join(algs)}: some verifiers refuse a mixed one")
    return found


def _takes_over(ring: Ring, key: SigningKey, time: datetime, rules: Rules) -> bool:
    """Return whether ``key`` begins to sign at ``time`` in another key's place, and not because that one is revoked."""
    just_before = time - timedelta(microseconds=1)
    usable = ring.usable(just_before)
    previous = signing_or_none(ring, just_before) or max(usable, key=lambda other: other.signs_from, default=None)
    if previous is None or previous == key:
        return False
    return previous.revoked_at is None or previous.revoked_at > time + timedelta(seconds=rules.settled_seconds)


def _too_early(ring: Ring, key: SigningKey, time: datetime, rules: Rules) -> str | None:
    safe = rules.known_from(ring, key)
    if time >= safe or key.is_unsafe:
        return None
    return (
        f"{key.kid} would sign from {format_time(time)} on, before verifiers know it: it is published at "
        f"{format_time(key.published_at)}, and the earliest safe time is {format_time(safe)}"
    )


def _leaves_early(new: Ring, key: SigningKey, now: datetime) -> bool:
    return key.revoked_at is None and key not in new.published_keys(now)
