"""Unique bytes: never the same twice, in any thread or process."""

import os
import threading
from collections import Counter

import pytest

from app.randomness import unique_bytes


def test_they_are_as_many_as_asked_for() -> None:
    assert [len(unique_bytes(count)) for count in (0, 1, 16, 33, 64)] == [0, 1, 16, 33, 64]


def test_nothing_is_given_out_twice_to_any_thread() -> None:
    given: list[bytes] = []

    def take() -> None:
        given.extend([unique_bytes(16) for _ in range(2000)])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == len(given) == 16_000


def test_all_bytes_are_as_likely() -> None:
    counted = Counter(b"".join(unique_bytes(16) for _ in range(16_000)))
    assert len(counted) == 256
    assert all(700 < count < 1300 for count in counted.values()), "1000 each, give or take ten standard deviations"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_was_forked_begins_anew() -> None:
    unique_bytes(1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, unique_bytes(64))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 64)
    assert len(theirs) == 64
    assert theirs != unique_bytes(64)
    os.close(reading)
    os.close(writing)
