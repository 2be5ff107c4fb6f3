"""Logs failures of a service once for each kind, not for each call.

A service that is half broken fails many times a second, while other operations succeed.
"""

import logging
import threading
import time
from dataclasses import dataclass

from app.database.engine import describe, kind_of

log = logging.getLogger(__name__)

REPEAT_SECONDS = 60.0
"""A kind of failure that continues is logged again after this time, with a count."""

QUIET_SECONDS = 5.0
"""An operation counts as recovered when it succeeds this long after its last failure."""


@dataclass(slots=True)
class _Kind:
    logged_at: float
    unlogged: int = 0


class FailureLog:
    """Logs each kind of failure at once, then once a minute with a count, and the recovery.

    :param name: the service, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self.kinds: dict[tuple[str | None, str], _Kind] = {}
        """Operation and kind of the failures that go on; empty while all is well."""
        self._failed_at: dict[str | None, float] = {}
        self._failing: set[str | None] = set()

    @property
    def is_failing(self) -> bool:
        """Whether the last call of any operation failed."""
        return bool(self._failing)

    def failed(self, operation: str | None, error: Exception) -> None:
        """Record a failure.

        :param operation: what failed; ``None`` if the service could not be reached, so that everything fails.
        """
        now, key = time.monotonic(), (operation, kind_of(error))
        with self._lock:
            self._failing.add(operation)
            self._failed_at[operation] = now
            known = self.kinds.get(key)
            if known and now - known.logged_at < REPEAT_SECONDS:
                known.unlogged += 1
                return
            self.kinds[key] = _Kind(now)
        more = f" ({known.unlogged} more since the last line)" if known and known.unlogged else ""
        log.error("%s fails: %s%s", self._name, describe(error), more)

    def succeeded(self, operation: str) -> None:
        """Record a success: ``operation`` works, and the service can be reached.

        The recovery is logged only after :data:`QUIET_SECONDS` without a failure of either.
        """
        with self._lock:
            self._failing -= {operation, None}
            failed = [key for key in self.kinds if key[0] in {operation, None}]
            if failed and time.monotonic() - max(self._failed_at[key[0]] for key in failed) >= QUIET_SECONDS:
                self._forget(failed)

    def end(self) -> None:
        """Record that the service has recovered as a whole."""
        with self._lock:
            self._failing.clear()
            if self.kinds:
                self._forget(list(self.kinds))

    def _forget(self, keys: list[tuple[str | None, str]]) -> None:
        unlogged = sum(self.kinds.pop(key).unlogged for key in keys)
        more = f" ({unlogged} more failures since the last line)" if unlogged else ""
        log.warning("%s responds again%s", self._name, more)
