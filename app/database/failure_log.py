"""Logs the failures of a service by their kind, not by the call: a service that is half broken fails all the time."""

import logging
import threading
import time
from dataclasses import dataclass

from app.database.engine import describe, kind_of

log = logging.getLogger(__name__)

REPEAT_SECONDS = 60.0
"""How often a kind of failure that goes on is logged."""

QUIET_SECONDS = 5.0
"""How long what failed must not have failed before it counts as working again."""


@dataclass(slots=True)
class _Kind:
    logged_at: float
    unlogged: int = 0


class FailureLog:
    """Logs each kind of failure at once, then once a minute with a count; and that what failed works again.

    :param name: the service.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str | None, str], _Kind] = {}
        self._failed_at: dict[str | None, float] = {}
        self._failing: set[str | None] = set()

    @property
    def is_failing(self) -> bool:
        """Whether the last call of any operation failed."""
        return bool(self._failing)

    def failed(self, operation: str | None, error: Exception) -> None:
        """Record a failure.

        :param operation: what failed; ``None`` for everything: the service could not be reached.
        """
        now, key = time.monotonic(), (operation, kind_of(error))
        with self._lock:
            self._failing.add(operation)
            self._failed_at[operation] = now
            known = self._kinds.get(key)
            if known and now - known.logged_at < REPEAT_SECONDS:
                known.unlogged += 1
                return
            self._kinds[key] = _Kind(now)
        more = f" ({known.unlogged} more since the last line)" if known and known.unlogged else ""
        log.error("%s fails: %s%s", self._name, describe(error), more)

    def succeeded(self, operation: str) -> None:
        """Record a success: of this operation, which shows that the service can be reached.

        It is logged only if neither has failed just before.
        """
        if not self._kinds:
            return
        with self._lock:
            self._failing -= {operation, None}
            failed = [key for key in self._kinds if key[0] in {operation, None}]
            if failed and time.monotonic() - max(self._failed_at[key[0]] for key in failed) >= QUIET_SECONDS:
                self._forget(failed)

    def end(self) -> None:
        """Record that everything works again."""
        with self._lock:
            self._failing.clear()
            if self._kinds:
                self._forget(list(self._kinds))

    def _forget(self, keys: list[tuple[str | None, str]]) -> None:
        unlogged = sum(self._kinds.pop(key).unlogged for key in keys)
        more = f" ({unlogged} more failures since the last line)" if unlogged else ""
        log.warning("%s responds again%s", self._name, more)
