"""The floor: of a worker's threads one works, and one waits for what comes; those that wait for others are not counted.

Threads that work at once take the interpreter's lock from each other at every system call: eight of them cost five
context switches a token, and the slowest answers took four times as long.
"""

import threading
from collections import deque
from collections.abc import Sequence
from functools import partial

from app.blocking import on_blocking


class Floor:
    """Who may work, and who waits for the next event.

    The *leader* alone waits for events, so that one that comes wakes one thread. Who has the *floor* works; threads get
    it in the order in which they asked. A thread that waits for something else gives up both, and needs the floor to go
    on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        self.asking: deque[tuple[int, threading.Lock]] = deque()
        """Those who wait for the floor, in order."""
        self._leading = threading.Lock()
        self._leader: int | None = None

    @property
    def holder(self) -> int | None:
        """The number of the thread that works."""
        return self._holder

    def enter(self, number: int) -> None:
        """Listen, in the thread ``number``, to whether it waits."""
        on_blocking(partial(self.give_up, number), partial(self.take, number))

    def free(self, busy_since: Sequence[float], limit: float) -> None:
        """Take the floor from a thread that has served since before ``limit``: it waits, and has not said so.

        :param busy_since: by the thread's number; 0.0 for one that does not serve.
        """
        holder = self._holder
        if holder is not None and 0.0 < busy_since[holder] < limit:
            self.give_up(holder)

    def lead(self, number: int) -> None:
        """Wait until ``number`` is the leader, and take the floor."""
        if self._leader == number == self._holder:
            return
        if self._leader != number:
            self.leave(number)
            self._leading.acquire()
            self._leader = number
        self.take(number)

    def take(self, number: int) -> None:
        """Wait until ``number`` has the floor; who has it keeps it."""
        with self._lock:
            if self._holder is None:
                self._holder = number
            if self._holder == number:
                return
            mine = threading.Lock()
            mine.acquire()
            self.asking.append((number, mine))
        mine.acquire()

    def leave(self, number: int) -> None:
        """Let the next one have the floor, if ``number`` has it."""
        with self._lock:
            if self._holder == number:
                self._holder = None
                if self.asking:
                    self._holder, its = self.asking.popleft()
                    its.release()

    def share(self, number: int) -> None:
        """Let those have the floor first who ask for it, if any do."""
        if self.asking:
            self.leave(number)
            self.take(number)

    def give_up(self, number: int) -> None:
        """Let others lead and work meanwhile."""
        with self._lock:
            if self._leader == number:
                self._leader = None
                self._leading.release()
        self.leave(number)


class Turns:
    """So many may be taken at once; nobody waits for one."""

    def __init__(self, count: int) -> None:
        self._left = deque(range(count))

    def take(self) -> bool:
        """Take one; whether there was one left."""
        try:
            self._left.pop()
        except IndexError:
            return False
        return True

    def give_back(self) -> None:
        """Let another one take it."""
        self._left.append(0)
