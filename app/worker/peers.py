"""How many connections each worker holds, in memory that all share: the kernel alone would not spread them evenly."""

import mmap
import time

PLACES = 64
"""Workers that see each other's load; with more, some share a place and the balance is less exact."""

ALIVE_SECONDS = 3
"""How long a worker counts after its last heartbeat."""


class Peers:
    """A worker's place among its siblings: open connections, and the second of the last heartbeat.

    :param shared: what :meth:`share` made, before the workers were forked.
    :param age: the number of this worker.
    """

    def __init__(self, shared: memoryview, age: int) -> None:
        self._shared = shared
        self._place = 2 * (age % PLACES)

    @staticmethod
    def share() -> memoryview:
        """Make the memory."""
        return memoryview(mmap.mmap(-1, PLACES * 8)).cast("i")

    def publish(self, connections: int, *, beat: int | None = None) -> None:
        """Tell the others how many connections are open here."""
        self._shared[self._place] = connections
        if beat is not None:
            self._shared[self._place + 1] = beat

    def have_fewer_than(self, connections: int) -> bool:
        """Whether a live worker has at least two connections less."""
        values = self._shared.tolist()
        alive_since = int(time.monotonic()) - ALIVE_SECONDS
        fewest = min((values[i] for i in range(0, 2 * PLACES, 2) if values[i + 1] >= alive_since), default=0)
        return connections > fewest + 1
