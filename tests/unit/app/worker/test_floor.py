"""One thread works at a time, each gets its turn in order, and one that waits keeps nobody from it."""

import random
import threading
import time
from collections.abc import Callable

from app.blocking import blocking
from app.worker.floor import Floor, Turns


def in_threads(count: int, run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "it waits for ever"


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_works_at_a_time_whatever_they_do() -> None:
    floor, working, seen = Floor(), [], []

    def work(number: int) -> None:
        dice = random.Random(number)
        for _ in range(300):
            floor.lead(number)
            floor.share(number)
            if dice.random() < 0.3:
                # As a thread does that polls.
                floor.leave(number)
                floor.take(number)
            working.append(number)
            seen.append(len(working))
            assert floor.holder == number
            working.remove(number)
            if dice.random() < 0.5:
                floor.give_up(number)
                time.sleep(dice.random() / 2000)
                floor.take(number)
                working.append(number)
                seen.append(len(working))
                working.remove(number)
        floor.give_up(number)

    in_threads(6, work)
    assert set(seen) == {1}
    assert len(seen) >= 6 * 300
    assert floor.holder is None


def test_who_asked_first_is_first() -> None:
    floor, order = Floor(), []
    floor.take(9)

    def work(number: int) -> None:
        wait_for(lambda: len(floor.asking) == number)
        floor.take(number)
        order.append(number)
        floor.leave(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(floor.asking) == 4)
    floor.share(9)
    floor.leave(9)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_who_has_it_keeps_it_and_who_has_it_not_leaves_nothing() -> None:
    floor = Floor()
    floor.take(1)
    floor.take(1)
    floor.leave(2)
    floor.give_up(2)
    assert floor.holder == 1
    floor.leave(1)
    floor.leave(1)
    assert floor.holder is None


def test_another_leads_while_the_leader_waits() -> None:
    floor, led = Floor(), threading.Event()
    floor.lead(1)

    def lead(_: int) -> None:
        floor.lead(2)
        led.set()
        floor.give_up(2)

    thread = threading.Thread(target=lead, args=(2,))
    thread.start()
    assert not led.wait(0.05)
    floor.give_up(1)
    assert led.wait(5)
    thread.join()
    floor.take(1)
    assert floor.holder == 1


def test_only_from_who_has_served_for_long_it_is_taken() -> None:
    floor = Floor()
    floor.free([1.0, 1.0], 2.0)
    floor.lead(1)
    for busy_since in ([1.0, 0.0], [1.0, 2.0], [0.0, 3.0]):
        floor.free(busy_since, 2.0)
        assert floor.holder == 1
    floor.free([0.0, 1.9], 2.0)
    assert floor.holder is None
    in_threads(1, floor.lead)
    assert floor.holder == 0


def test_a_thread_that_has_entered_gives_it_up_while_it_waits() -> None:
    floor, seen = Floor(), []

    def work(number: int) -> None:
        floor.enter(number)
        floor.lead(number)
        with blocking:
            seen.append(floor.holder)
        seen.append(floor.holder)
        floor.give_up(number)

    in_threads(1, work)
    assert seen == [None, 0]


def test_there_are_so_many_turns_whoever_takes_them() -> None:
    turns, taken = Turns(3), []

    def take(_: int) -> None:
        for _ in range(2000):
            if turns.take():
                taken.append(1)
                assert len(taken) <= 3
                taken.pop()
                turns.give_back()

    in_threads(6, take)
    assert [turns.take() for _ in range(4)] == [True, True, True, False]
