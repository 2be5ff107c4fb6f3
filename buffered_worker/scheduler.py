"""The scheduler: one thread runs Python and one waits in epoll; threads blocked on I/O do not count.

Threads that run at the same time take the interpreter's lock from each other at every system call: with eight of them a
token cost five context switches, and the slowest responses took four times as long.
"""

import select
import threading
from collections import deque


class Scheduler:
    """A run lock that threads get in the order in which they ask, and the right to wait in epoll.

    A thread that finds an event keeps both while it serves it, so that one thread alone serves one request after the
    other. A thread that blocks gives up both, and needs the run lock to go on. Threads are named by number.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.running: int | None = None
        """The thread that holds the run lock."""
        self.queue: deque[tuple[int, threading.Lock]] = deque()
        """Threads that wait for the run lock, in order."""
        self._epoll_lock = threading.Lock()
        self._polling: int | None = None

    def next_event(self, number: int, epoll: select.epoll) -> int:
        """Wait for an event and for the run lock; return the event's file descriptor."""
        if self._polling != number:
            self.release(number)
            self._epoll_lock.acquire()
            self._polling = number
        elif self.queue:
            self.release(number)
        self.acquire(number)
        events = epoll.poll(0, 1)
        if not events:
            self.release(number)
            events = epoll.poll(None, 1)
            self.acquire(number)
        fd: int = events[0][0]
        return fd

    def acquire(self, number: int) -> None:
        """Wait for the run lock. A thread that holds it already keeps it."""
        with self._guard:
            if self.running is None:
                self.running = number
            if self.running == number:
                return
            turn = threading.Lock()
            turn.acquire()
            self.queue.append((number, turn))
        turn.acquire()

    def release(self, number: int) -> None:
        """Hand the run lock to the next thread, if thread ``number`` holds it."""
        with self._guard:
            if self.running == number:
                self.running = None
                if self.queue:
                    self.running, turn = self.queue.popleft()
                    turn.release()

    def step_aside(self, number: int) -> None:
        """Let other threads wait in epoll and run, while thread ``number`` blocks or after it has ended."""
        with self._guard:
            if self._polling == number:
                self._polling = None
                self._epoll_lock.release()
        self.release(number)


class Slots:
    """A counter of slots, of which ``count`` may be taken at a time. A semaphore costs ten times as much."""

    def __init__(self, count: int) -> None:
        self._free = deque(range(count))

    def take(self) -> bool:
        """Take a slot; return whether one was free."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def release(self) -> None:
        """Free a slot."""
        self._free.append(0)
