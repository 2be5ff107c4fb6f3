"""Counts of all processes of an installation in Redis: one round trip for each part of a limit.

Keys: ``tokenhouse:limit:<hash of what is counted>``, each of which expires with its window. A Redis that has forgotten
them begins new windows.
"""

import hashlib
import json
from typing import TYPE_CHECKING

from app.database.circuit_breaker import WRITING
from app.oauth.rate_limiter import Reservation
from app.types import Rate

if TYPE_CHECKING:
    from app.database.redis import RedisAccess

_PREFIX = "tokenhouse:limit:"


class RedisCounts:
    """A :class:`app.oauth.rate_limiter.SharedCounts`.

    The replay store probes Redis while the circuit is open.
    """

    def __init__(self, redis: "RedisAccess") -> None:
        self._redis = redis.open()
        self._circuit_breaker = redis.circuit_breaker

    def reserve(self, kind: str, subject: str, rate: Rate, number: int) -> Reservation:
        """See :meth:`app.oauth.rate_limiter.SharedCounts.reserve`."""
        key = _PREFIX + hashlib.sha256(json.dumps([kind, subject, *rate]).encode()).hexdigest()
        with self._circuit_breaker.allow_blocking(WRITING), self._redis.pipeline() as transaction:
            transaction.set(key, 0, nx=True, ex=rate.seconds)
            transaction.incrby(key, number)
            transaction.pttl(key)
            _, reserved_by_all, milliseconds = transaction.execute()
        granted = min(number, rate.amount - (reserved_by_all - number))
        return Reservation(max(0, granted), max(milliseconds, 1) / 1000)
