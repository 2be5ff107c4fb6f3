"""Shares how many connections each worker holds, in shared memory: the kernel alone would not spread them evenly."""

import mmap
import time

SLOTS = 64
"""Workers that see each other's load. With more workers some share a slot, and the balance is less exact."""

ALIVE_SECONDS = 3
"""How long a worker counts after its last heartbeat."""


class LoadSharing:
    """A worker's slot among its siblings: its open connections, and the second of its last heartbeat.

    :param shared: the memory from :meth:`share`, made before the workers were forked.
    :param age: the number of this worker.
    """

    def __init__(self, shared: memoryview, age: int) -> None:
        self._shared = shared
        self._slot = 2 * (age % SLOTS)

    @staticmethod
    def share() -> memoryview:
        """Allocate the shared memory."""
        return memoryview(mmap.mmap(-1, SLOTS * 8)).cast("i")

    def publish(self, connections: int, *, heartbeat: int | None = None) -> None:
        """Publish how many connections this worker holds."""
        self._shared[self._slot] = connections
        if heartbeat is not None:
            self._shared[self._slot + 1] = heartbeat

    def another_has_fewer(self, connections: int) -> bool:
        """Return whether a live worker holds at least two connections fewer than ``connections``."""
        values = self._shared.tolist()
        alive_since = int(time.monotonic()) - ALIVE_SECONDS
        fewest = min((values[i] for i in range(0, 2 * SLOTS, 2) if values[i + 1] >= alive_since), default=0)
        return connections > fewest + 1
