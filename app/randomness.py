"""Random bytes for names that must be unique and are no secrets: of requests and of tokens.

From the system's generator, which is asked for many at once: a system call for each costs more than a digest.
"""

import os
import threading

_BYTES_AT_ONCE = 2048


class _Drawn(threading.local):
    """What a thread has drawn and not given out yet. Nothing is given out twice."""

    left = b""


_drawn = _Drawn()


def unique_bytes(count: int) -> bytes:
    """``count`` random bytes, at most 64."""
    if len(_drawn.left) < count:
        _drawn.left = os.urandom(_BYTES_AT_ONCE)
    given, _drawn.left = _drawn.left[:count], _drawn.left[count:]
    return given


def _forget() -> None:
    """Begin anew in a process that was forked: what is left is the other's to give out."""
    global _drawn  # noqa: PLW0603 - One for a process.
    _drawn = _Drawn()


os.register_at_fork(after_in_child=_forget)
