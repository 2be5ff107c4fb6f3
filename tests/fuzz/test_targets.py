"""The fuzzer's targets, with their seeds and with small changes of them; `make fuzz` tries more."""

from collections.abc import Iterator

import pytest
from fuzz import run
from fuzz.targets import TARGETS, Check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PIECES = st.binary(max_size=12) | st.sampled_from([b"\r\n", b"\0", b'"', b"%", b",", b".", b'":', b"1e400"])
TRIED = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_fuzzer_knows_every_target() -> None:
    assert sorted(TARGETS) == sorted(run.TARGETS)


@pytest.fixture(params=TARGETS, scope="module")
def target(request: pytest.FixtureRequest) -> Iterator[tuple[Check, tuple[bytes, ...]]]:
    chosen = TARGETS[request.param]
    with chosen.open() as check:
        yield check, chosen.seeds


def test_every_rule_holds_for_the_seeds(target: tuple[Check, tuple[bytes, ...]]) -> None:
    check, seeds = target
    for seed in seeds:
        check(seed)


@TRIED
@given(data=st.data(), place=st.integers(0, 200), removed=st.integers(0, 20), piece=PIECES)
def test_every_rule_holds_for_what_is_nearly_a_seed(
    target: tuple[Check, tuple[bytes, ...]], data: st.DataObject, place: int, removed: int, piece: bytes
) -> None:
    check, seeds = target
    seed = data.draw(st.sampled_from(seeds))
    check(seed[:place] + piece + seed[place + removed :])
