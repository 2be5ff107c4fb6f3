"""Counts requests in windows of time, in memory: a window begins with its first request.

Each process counts for itself. With Redis all processes of an installation share the counts
(``rate_limiter_redis``): a process draws a hundredth of a limit at a time, so that few requests wait for Redis. While
Redis is away each process counts for itself again.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from app.errors import ServiceUnavailable
from app.types import Rate

DRAWS = 100
"""A process draws this part of a limit at a time. What it has drawn and does not use is lost when the window ends."""


class Drawn(NamedTuple):
    """What was drawn from a shared window: how many requests, and until when it lasts."""

    granted: int
    seconds_left: float


class SharedCounts(Protocol):
    """Counts of all processes."""

    def draw(self, kind: str, subject: str, rate: Rate, number: int) -> Drawn:
        """Draw ``number`` requests, or as many as are left.

        :raises ServiceUnavailable: the counts cannot be reached.
        """
        ...


class _Window:
    """What is left of a window.

    :ivar left: requests that are allowed without drawing again.
    :ivar is_drawn: whether no more can be drawn.
    """

    __slots__ = ("ends_at", "is_drawn", "left")

    def __init__(self, ends_at: float) -> None:
        self.ends_at, self.left, self.is_drawn = ends_at, 0, False


class RateLimiter:
    """Counts the requests of one process.

    :param most_windows: the most that are kept; beyond that the oldest is forgotten, whose subject then begins anew.
    :param shared: the counts of all processes, if there are any.
    """

    def __init__(
        self, most_windows: int, shared: SharedCounts | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_windows = most_windows
        self._shared = shared
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str, Rate], _Window] = {}

    def take(self, kind: str, subject: str, rate: Rate) -> float:
        """Count one request; return 0 if ``rate`` allows it, or else the seconds until the window ends.

        :param kind: what is counted.
        :param subject: of whom.
        """
        key, shared, now = (kind, subject, rate), self._shared, self._monotonic()
        with self._lock:
            window = self._windows.get(key)
            if window is None or window.ends_at <= now:
                window = self._open(key, now)
            if window.left:
                window.left -= 1
                return 0.0
            if shared is None or window.is_drawn:
                return window.ends_at - now
        return self._draw(window, key, shared)

    def _open(self, key: tuple[str, str, Rate], now: float) -> _Window:
        self._windows.pop(key, None)
        # In the order of their beginnings.
        while self._windows:
            oldest = next(iter(self._windows))
            if len(self._windows) < self._most_windows and self._windows[oldest].ends_at > now:
                break
            del self._windows[oldest]
        window = self._windows[key] = _Window(now + key[2].seconds)
        if self._shared is None:
            window.left = key[2].amount
        return window

    def _draw(self, window: _Window, key: tuple[str, str, Rate], shared: SharedCounts) -> float:
        rate = key[2]
        number = max(1, rate.amount // DRAWS)
        try:
            drawn = shared.draw(*key, number)
        except ServiceUnavailable:
            number, drawn = rate.amount + 1, Drawn(rate.amount, rate.seconds)
        now = self._monotonic()
        with self._lock:
            window.ends_at = now + drawn.seconds_left
            window.left += drawn.granted
            window.is_drawn = drawn.granted < number
            if not window.left:
                return window.ends_at - now
            window.left -= 1
            return 0.0
