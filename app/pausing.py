"""Who is about to wait says so, and a server lets another thread go on meanwhile.

Elsewhere than in a thread of a server that listens, nothing happens.
"""

import threading
from collections.abc import Callable


def _nothing() -> None:
    pass


class _Listener(threading.local):
    """Whom to tell in this thread."""

    leave: Callable[[], None] = staticmethod(_nothing)
    come_back: Callable[[], None] = staticmethod(_nothing)


_listener = _Listener()


class _Waiting:
    """``with waiting:`` around what may take long without using the processor: a network, another process."""

    def __enter__(self) -> None:
        _listener.leave()

    def __exit__(self, *_: object) -> None:
        _listener.come_back()


waiting = _Waiting()


def listen(leave: Callable[[], None], come_back: Callable[[], None]) -> None:
    """Call ``leave`` when this thread is about to wait, and ``come_back`` when it has."""
    _listener.leave, _listener.come_back = leave, come_back
