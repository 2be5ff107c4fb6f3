"""``with blocking:`` marks code that waits without using the processor: for a network, or for another process.

A server that limits how many threads run may let another one run meanwhile: it registers two hooks in each of its
threads with :func:`on_blocking`. In threads without hooks nothing happens.
"""

import threading
from collections.abc import Callable


def _do_nothing() -> None:
    pass


class _Hooks(threading.local):
    before: Callable[[], None] = staticmethod(_do_nothing)
    after: Callable[[], None] = staticmethod(_do_nothing)


_hooks = _Hooks()


class BlockingSection:
    """A reusable context manager that calls the hooks of the current thread."""

    def __enter__(self) -> None:
        _hooks.before()

    def __exit__(self, *_: object) -> None:
        _hooks.after()


blocking = BlockingSection()


def on_blocking(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call ``before`` when this thread enters a blocking section, and ``after`` when it leaves one."""
    _hooks.before, _hooks.after = before, after
