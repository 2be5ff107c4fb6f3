"""One thread runs at a time, each in its turn, and a thread that blocks keeps no other from running."""

import contextlib
import os
import random
import select
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from buffered_worker.scheduler import Scheduler, Slots


def in_threads(count: int, run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "it waits for ever"


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Events:
    """An epoll with one pipe: each written byte is an event until it is read."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.epoll = select.epoll()
        self.epoll.register(self.reading, select.EPOLLIN)

    def send(self, count: int = 1) -> None:
        os.write(self._writing, b"x" * count)

    def consume(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.reading, 1)

    def close(self) -> None:
        self.epoll.close()
        os.close(self.reading)
        os.close(self._writing)


@pytest.fixture
def events() -> Iterator[Events]:
    made = Events()
    yield made
    made.close()


def test_one_thread_runs_at_a_time_whatever_the_threads_do(events: Events) -> None:
    scheduler, running, seen = Scheduler(), [], []
    left = threading.Semaphore(1800)

    def run(number: int) -> None:
        running.append(number)
        seen.append(len(running))
        assert scheduler.running == number
        running.remove(number)

    def serve(number: int) -> None:
        dice = random.Random(number)
        while left.acquire(blocking=False):
            events.send()
            assert scheduler.next_event(number, events.epoll) == events.reading
            events.consume()
            run(number)
            if dice.random() < 0.5:
                scheduler.step_aside(number)
                time.sleep(dice.random() / 2000)
                scheduler.acquire(number)
                run(number)
        scheduler.step_aside(number)

    in_threads(6, serve)
    assert set(seen) == {1}
    assert len(seen) >= 1800
    assert scheduler.running is None


def test_threads_get_the_run_lock_in_the_order_in_which_they_ask() -> None:
    scheduler, order = Scheduler(), []
    scheduler.acquire(9)

    def run(number: int) -> None:
        wait_until(lambda: len(scheduler.queue) == number)
        scheduler.acquire(number)
        order.append(number)
        scheduler.release(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(scheduler.queue) == 4)
    scheduler.release(9)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_a_thread_that_resumes_goes_before_the_next_event(events: Events) -> None:
    scheduler, order = Scheduler(), []
    events.send()
    scheduler.next_event(1, events.epoll)

    def resume(_: int) -> None:
        scheduler.acquire(2)
        order.append("resumed")
        scheduler.release(2)

    thread = threading.Thread(target=resume, args=(2,))
    thread.start()
    wait_until(lambda: len(scheduler.queue) == 1)
    scheduler.next_event(1, events.epoll)
    order.append("event")
    thread.join()
    assert order == ["resumed", "event"]


def test_the_owner_keeps_the_run_lock_and_others_cannot_release_it() -> None:
    scheduler = Scheduler()
    scheduler.acquire(1)
    scheduler.acquire(1)
    scheduler.release(2)
    scheduler.step_aside(2)
    assert scheduler.running == 1
    scheduler.release(1)
    scheduler.release(1)
    assert scheduler.running is None


def test_another_thread_polls_only_after_the_polling_thread_stepped_aside(events: Events) -> None:
    scheduler, polled = Scheduler(), threading.Event()
    events.send()
    scheduler.next_event(1, events.epoll)

    def poll(_: int) -> None:
        scheduler.next_event(2, events.epoll)
        polled.set()
        scheduler.step_aside(2)

    thread = threading.Thread(target=poll, args=(2,))
    thread.start()
    assert not polled.wait(0.05)
    scheduler.step_aside(1)
    assert polled.wait(5)
    thread.join()
    scheduler.acquire(1)
    assert scheduler.running == 1


def test_no_more_slots_are_taken_at_a_time_than_there_are() -> None:
    slots, taken, most, guard = Slots(3), [0], [0], threading.Lock()

    def take_and_release(_number: int) -> None:
        for _ in range(500):
            if slots.take():
                with guard:
                    taken[0] += 1
                    most[0] = max(most[0], taken[0])
                time.sleep(0)
                with guard:
                    taken[0] -= 1
                slots.release()

    assert [slots.take() for _ in range(4)] == [True, True, True, False]
    for _ in range(3):
        slots.release()
    in_threads(8, take_and_release)
    assert 1 <= most[0] <= 3
    assert [slots.take() for _ in range(4)] == [True, True, True, False]
