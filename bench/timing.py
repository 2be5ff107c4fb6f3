"""Measures the time of one call, for the other files of this folder."""

import time
from collections.abc import Callable

ROUNDS = 5


def microseconds(call: Callable[[], object], calls: int) -> float:
    """Return the time of one call, the best of some rounds of ``calls`` calls."""
    took = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        took.append((time.perf_counter() - begun) / calls * 1e6)
    return min(took)
