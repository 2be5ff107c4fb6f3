"""The replay store in a Redis that several machines share: one round trip per assertion.

Redis can forget: it may restart empty or from an older copy, or be flushed. So it also holds an epoch, the time
since when nothing was forgotten, with the id of the Redis process. If the epoch is missing or another process's, a
new epoch begins, and assertions issued before it are refused. An assertion of a client whose clock is ahead could
seem to be issued in a later epoch than the one it was used in; such ids are stored in the database as well.

Keys: ``tokenhouse:{replay}:<hash of iss and jti>``, which expire, and ``tokenhouse:{replay}:epoch``.
"""

import logging
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app.blocking import blocking
from app.database.circuit_breaker import WRITING
from app.errors import ServiceUnavailable
from app.oauth.replay_store import LAST_SECOND, SKEW_SECONDS, DatabaseReplayStore, key_of
from app.types import Clock

if TYPE_CHECKING:
    from app.database.redis import RedisAccess

log = logging.getLogger(__name__)

OTHERS_LOOKS, OTHERS_SECONDS = 20, 0.05
"""Poll count and interval while another worker may be writing the epoch."""

_PREFIX = "tokenhouse:{replay}:"
"""The braces keep all keys on one node of a cluster: a transaction cannot span two."""
_EPOCH = f"{_PREFIX}epoch"
_EPOCH_DIGITS = len(str(LAST_SECOND))
_EVER_USED = ("", "a Redis holds what was used")
"""Stored in the database, under no client's id: from then on a missing epoch means that it was lost."""


class RedisReplayStore:
    """Stores used ids in Redis.

    :param durable: the database, for ids that Redis alone could not decide.
    """

    def __init__(
        self,
        redis: "RedisAccess",
        durable: DatabaseReplayStore,
        clock: Clock,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._redis = redis.open(redis_connect_func=self._greet)
        self._durable = durable
        self._clock = clock
        self._pause = pause
        self._circuit_breaker = redis.circuit_breaker
        self._process = ""

    def use(self, issuer: str, jti: str, issued_at: int, until: int) -> bool:
        """See :meth:`app.oauth.replay_store.ReplayStore.use`."""
        now = self._now()
        key, ours = _PREFIX + key_of(issuer, jti), secrets.token_bytes(16)
        with self._circuit_breaker.allow_blocking(WRITING), self._redis.pipeline() as transaction:
            transaction.get(_EPOCH)
            # Sent again after a lost reply, it is still ours.
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
        """Probe Redis, and detect whether it has forgotten."""
        self._circuit_breaker.poll(self._redis.ping)
        try:
            with self._circuit_breaker.allow_blocking():
                recorded = self._redis.get(_EPOCH)
            self._epoch(recorded)
        except ServiceUnavailable:
            return

    def delete_expired(self) -> None:
        """Delete expired ids from the database; Redis expires its own."""
        self._durable.delete_expired()

    @property
    def is_unavailable(self) -> bool:
        """Whether the last call failed."""
        return self._circuit_breaker.is_failing

    def _now(self) -> int:
        return int(self._clock().timestamp())

    def _epoch(self, recorded: Any) -> int:
        """Return the epoch in seconds since 1970; begin one if it is not known."""
        known = self._read_epoch(recorded)
        if known is not None:
            return known
        epoch = self._now()
        if self._durable.use(*_EVER_USED, epoch, LAST_SECOND + 1) and not self._durable.was_used_since(epoch):
            self._begin(0)
            return 0
        # The very first worker may be about to write it, and another may have begun this epoch.
        for _ in range(OTHERS_LOOKS):
            with blocking:
                self._pause(OTHERS_SECONDS)
            with self._circuit_breaker.allow_blocking():
                recorded = self._redis.get(_EPOCH)
            known = self._read_epoch(recorded)
            if known is not None:
                return known
        why = "it is empty" if recorded is None else "it has restarted"
        log.warning("redis may have forgotten used assertions (%s): assertions issued before now are refused", why)
        self._begin(epoch)
        return epoch

    def _read_epoch(self, recorded: Any) -> int | None:
        """Return the epoch in ``recorded``, if the process that answers wrote it, and it has begun."""
        process, _, since = (recorded or b"").decode("ascii", "replace").partition(" ")
        if process != self._process or not since.isdecimal() or len(since) > _EPOCH_DIGITS:
            return None
        # One in the future would refuse every assertion until then.
        return int(since) if int(since) <= self._now() + SKEW_SECONDS else None

    def _begin(self, epoch: int) -> None:
        with self._circuit_breaker.allow_blocking(WRITING):
            self._redis.set(_EPOCH, f"{self._process} {epoch}")

    def _greet(self, connection: Any) -> None:
        """Read the id of the Redis process with each connection: after a restart, used ids may be missing."""
        connection.on_connect()
        connection.send_command("INFO", "server")
        response = connection.read_response()
        lines = response.decode("utf-8", "replace") if isinstance(response, bytes) else str(response)
        ids = [line.partition(":")[2].strip() for line in lines.splitlines() if line.startswith("run_id:")]
        self._process = next(iter(ids), "unknown")
