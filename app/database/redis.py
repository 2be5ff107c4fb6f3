"""Connections to Redis, and the circuit breaker that guards them. What is stored there is left to others."""

from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from app.database.circuit_breaker import UNTRACED, CircuitBreaker, Tracing
from app.reasons import RefusalReason

TIMEOUT_SECONDS = 1.0
"""Timeout of connections and replies, unless the URL sets one. Redis usually replies within a millisecond."""


class RedisAccess:
    """Opens clients of the Redis of the settings; all share one circuit breaker.

    :param traced_by: makes the trace spans of calls.
    """

    def __init__(self, url: str, traced_by: Tracing = UNTRACED) -> None:
        self._url = url
        self.circuit_breaker = RedisCircuitBreaker(traced_by)

    def open(self, **options: Any) -> Redis:
        """Return a client with its own connections. Nothing connects yet."""
        return Redis(connection_pool=open_pool(self._url, **options))


class RedisCircuitBreaker(CircuitBreaker):
    """The circuit breaker of Redis."""

    what = "redis"
    failure_reason = RefusalReason.REDIS
    silence_reason = RefusalReason.REDIS_SILENT
    failures = RedisError

    def is_away(self, error: Exception) -> bool:
        """See :meth:`CircuitBreaker.is_away`."""
        return isinstance(error, RedisConnectionError | RedisTimeoutError)


def open_pool(url: str, **options: Any) -> ConnectionPool:
    """Return a pool of connections to the Redis at ``url``; nothing connects yet.

    A dropped connection is replaced once.

    :raises ValueError: not a URL of Redis.
    """
    options |= {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    return ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 1, (RedisConnectionError,)), **options)
