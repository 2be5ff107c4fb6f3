"""What may be used once, in a Redis that several machines share: one round trip for each assertion.

A Redis can forget: it restarts empty or from an older copy, or somebody flushes it. Since when it has not, its epoch,
therefore stands in it too, beside the id of the process that it was noted for. Where it is missing, or of
another process, a new epoch begins, and assertions from before it are refused. Those whose clients' clocks are ahead
could seem to be of a later one than the one they were used in; they are remembered in the database as well.

What Redis holds: ``tokenhouse:{replay}:<hash of iss and jti>``, with its end, and ``tokenhouse:{replay}:epoch``.
"""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from app.blocking import blocking
from app.database.circuit_breaker import CircuitBreaker, Span
from app.errors import ServiceUnavailable
from app.oauth.replay_store import LAST_SECOND, SKEW_SECONDS, DatabaseReplayStore, key_of
from app.types import Clock

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 1.0
"""How long a connection and an answer may take, unless the URL says so. Redis answers within a millisecond."""
OTHERS_LOOKS, OTHERS_SECONDS = 20, 0.05
"""How often, and how far apart, one who finds no epoch looks for that of others who may have found that before it."""

_PREFIX = "tokenhouse:{replay}:"
"""The braces keep all on one node of a cluster: a transaction spans no two."""
_EPOCH = f"{_PREFIX}epoch"
_EVER_USED = ("", "a Redis holds what was used")
"""In the database, under no client's name: from then on an epoch that is missing was lost."""


class RedisCircuitBreaker(CircuitBreaker):
    """The way to Redis."""

    what = "redis"
    failures = RedisError


class RedisReplayStore:
    """Remembers in Redis.

    :param durable: the database, for the few that Redis alone could not tell.
    :param span: what a question to Redis happens within, where requests are traced.
    """

    def __init__(
        self,
        url: str,
        durable: DatabaseReplayStore,
        clock: Clock,
        pause: Callable[[float], None] = time.sleep,
        span: Span = lambda _: None,
    ) -> None:
        self._redis = Redis(connection_pool=open_pool(url, redis_connect_func=self._greet))
        self._durable = durable
        self._clock = clock
        self._pause = pause
        self._circuit_breaker = RedisCircuitBreaker(span)
        self._process = ""

    def use(self, issuer: str, jti: str, issued_at: int, until: int) -> bool:
        """See :meth:`app.oauth.replay_store.ReplayStore.use`."""
        now = self._now()
        key, ours = _PREFIX + key_of(issuer, jti), secrets.token_bytes(16)
        with self._circuit_breaker.allow_blocking(), self._redis.pipeline() as transaction:
            transaction.get(_EPOCH)
            # Asked again after a lost answer it is still ours.
            transaction.set(key, ours, nx=True, ex=max(until - now, 1))
            transaction.get(key)
            recorded, _, held = transaction.execute()
        epoch = self._epoch(recorded)
        if held != ours or issued_at <= epoch:
            return False
        if issued_at > now or issued_at <= epoch + SKEW_SECONDS:
            return self._durable.use(issuer, jti, issued_at, until)
        return True

    def poll(self) -> None:
        """Find out whether Redis answers again, and whether it has forgotten."""
        self._circuit_breaker.poll(self._redis.ping)
        try:
            with self._circuit_breaker.allow_blocking():
                recorded = self._redis.get(_EPOCH)
            self._epoch(recorded)
        except ServiceUnavailable:
            return

    def delete_expired(self) -> None:
        """Redis forgets by itself; the database does not."""
        self._durable.delete_expired()

    @property
    def is_unavailable(self) -> bool:
        """Whether Redis did not answer when it was last asked."""
        return self._circuit_breaker.is_failing

    def _now(self) -> int:
        return int(self._clock().timestamp())

    def _epoch(self, recorded: Any) -> int:
        """Since when nothing was forgotten, in seconds since 1970; begins an epoch where that is not known."""
        known = self._read_epoch(recorded)
        if known is not None:
            return known
        epoch = self._now()
        if self._durable.use(*_EVER_USED, epoch, LAST_SECOND + 1) and not self._durable.was_used_since(epoch):
            self._begin(0)
            return 0
        # The first of all may be about to say so, and another worker may have begun this one.
        for _ in range(OTHERS_LOOKS):
            with blocking:
                self._pause(OTHERS_SECONDS)
            with self._circuit_breaker.allow_blocking():
                recorded = self._redis.get(_EPOCH)
            known = self._read_epoch(recorded)
            if known is not None:
                return known
        why = "it is empty" if recorded is None else "it has restarted"
        log.warning("redis may have forgotten what was used (%s): assertions from before now are refused", why)
        self._begin(epoch)
        return epoch

    def _read_epoch(self, recorded: Any) -> int | None:
        """The epoch that is ``noted``, if it is of the process that answers."""
        process, _, since = (recorded or b"").decode("ascii", "replace").partition(" ")
        return int(since) if process == self._process and since.isdecimal() else None

    def _begin(self, epoch: int) -> None:
        with self._circuit_breaker.allow_blocking():
            self._redis.set(_EPOCH, f"{self._process} {epoch}")

    def _greet(self, connection: Any) -> None:
        """Learn, with each connection, which process answers: another one may know less."""
        connection.on_connect()
        connection.send_command("INFO", "server")
        response = connection.read_response()
        lines = response.decode("utf-8", "replace") if isinstance(response, bytes) else str(response)
        ids = [line.partition(":")[2].strip() for line in lines.splitlines() if line.startswith("run_id:")]
        self._process = next(iter(ids), "unknown")


def open_pool(url: str, **options: Any) -> ConnectionPool:
    """Connections to the Redis at ``url``; nothing connects yet. A connection that was dropped is made anew, once.

    :raises ValueError: no URL of Redis.
    """
    options |= {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    return ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 1, (RedisConnectionError,)), **options)
