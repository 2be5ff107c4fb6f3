"""A ring's timeline: exact text, and a picture with the same facts."""

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from app.cli.timeline import LANE_COLUMNS, bands, draw_svg, draw_text
from app.keyring.model import KeyState, Ring, SigningKey

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PRIVATE_KEY = rsa.generate_private_key(65537, 2048)


def key(kid: str, published: float, signs: float, revoked: float | None = None) -> SigningKey:
    """Times in days after ``T0``."""
    return SigningKey(
        kid,
        "RS256",
        T0 + timedelta(days=published),
        T0 + timedelta(days=signs),
        None if revoked is None else T0 + timedelta(days=revoked),
        PRIVATE_KEY,
    )


def test_the_text_is_a_lane_for_each_key_and_what_happens_when() -> None:
    ring = Ring((key("first-key", 0, 0), key("second-key", 10, 20), key("third-key", 10, 60, revoked=30)))
    assert draw_text(ring, T0, T0 + timedelta(days=60)) == (
        "           2026-01-01                                        2026-03-02\n"
        "first-key  SSSSSSSSSSSSSSSSSSSSrr                                        RS256\n"
        "second-k…            ··········SSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSS  RS256\n"
        "third-key            ····················xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  RS256\n"
        "           S signs   · announced   r retiring, still in the JWKS   x revoked\n"
        "\n"
        "2026-01-01T00:00:00Z  first-key signs\n"
        "2026-01-11T00:00:00Z  second-key is announced\n"
        "2026-01-11T00:00:00Z  third-key is announced\n"
        "2026-01-21T00:00:00Z  second-key signs\n"
        "2026-01-21T00:00:00Z  first-key retires\n"
        "2026-01-22T00:01:00Z  first-key leaves the JWKS\n"
        "2026-01-31T00:00:00Z  third-key is revoked"
    )


def test_nothing_to_tell_is_said() -> None:
    ring = Ring((key("k", -100, -100),))
    assert draw_text(ring, T0, T0 + timedelta(days=365)).endswith("\n\nNothing changes in this time.")
    assert draw_text(Ring(()), T0, T0 + timedelta(days=365)).endswith("Nothing changes in this time.")


def test_the_picture_says_what_it_shows() -> None:
    ring = Ring((key("<&>", 0, 0),))
    drawn = draw_svg(ring, T0, T0 + timedelta(days=10))
    assert "<title>&lt;&amp;&gt;: signing from 2026-01-01 00:00 to 2026-01-11 00:00 UTC</title>" in drawn
    assert "<&>" not in drawn


@given(
    times=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 100)), min_size=1, max_size=5),
    at=st.integers(0, 500 * 24),
)
def test_text_bands_and_states_never_disagree(times: list[tuple[int, int]], at: int) -> None:
    ring = Ring(tuple(key(f"k{number}", start, start + wait) for number, (start, wait) in enumerate(times)))
    end = T0 + timedelta(days=500)
    moment = T0 + timedelta(hours=at)
    for each in ring.keys:
        found = [band.state for band in bands(ring, each, T0, end) if band.start <= moment < band.end]
        expected = ring.state_of(each, moment)
        shown = moment >= each.published_at and expected is not KeyState.GONE and moment < end
        assert found == ([expected] if shown else [])
    lanes = draw_text(ring, T0, end).splitlines()[1 : 1 + len(times)]
    assert all(len(lane.removesuffix("RS256").rstrip()) <= 2 + LANE_COLUMNS + 2 for lane in lanes)
