"""Counts requests in windows of time, in memory: a window begins with its first request.

Each process counts for itself. With Redis all processes of an installation share the counts
(``rate_limiter_redis``): a process reserves a hundredth of a limit at a time, so that few requests wait for Redis.
While Redis is away each process counts for itself again.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from app.errors import ServiceUnavailable
from app.types import Rate

RESERVATIONS_PER_LIMIT = 100
"""A process reserves this part of a limit at a time. What it does not use is lost when the window ends."""


class Reservation(NamedTuple):
    """Requests reserved in a shared window, and the seconds until it ends."""

    granted: int
    seconds_left: float


class SharedCounts(Protocol):
    """Counts of all processes."""

    def reserve(self, kind: str, subject: str, rate: Rate, number: int) -> Reservation:
        """Reserve ``number`` requests, or as many as are left.

        :raises ServiceUnavailable: the counts cannot be reached.
        """
        ...


class _Window:
    """What is left of a window.

    :ivar left: requests that are allowed without another reservation.
    :ivar is_exhausted: whether no more can be reserved.
    """

    __slots__ = ("ends_at", "is_exhausted", "left")

    def __init__(self, ends_at: float) -> None:
        self.ends_at, self.left, self.is_exhausted = ends_at, 0, False


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
            if shared is None or window.is_exhausted:
                return window.ends_at - now
        return self._reserve(window, key, shared)

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

    def _reserve(self, window: _Window, key: tuple[str, str, Rate], shared: SharedCounts) -> float:
        rate = key[2]
        number = max(1, rate.amount // RESERVATIONS_PER_LIMIT)
        try:
            reservation = shared.reserve(*key, number)
        except ServiceUnavailable:
            number, reservation = rate.amount + 1, Reservation(rate.amount, rate.seconds)
        now = self._monotonic()
        with self._lock:
            window.ends_at = now + reservation.seconds_left
            window.left += reservation.granted
            window.is_exhausted = reservation.granted < number
            if not window.left:
                return window.ends_at - now
            window.left -= 1
            return 0.0
