"""Standard output, for the audit log, and standard error, for diagnostics: neither blocks a server."""

import sys
from functools import partial

from app.blocking import blocking
from buffered_worker.stream import NonBlockingStream

STDOUT = NonBlockingStream(partial(getattr, sys, "stdout"), blocking)
STDERR = NonBlockingStream(partial(getattr, sys, "stderr"), blocking)


def begin_non_blocking() -> None:
    """Let neither stream block this process, nor those that it forks.

    :raises OSError: a stream is closed.
    """
    STDOUT.begin()
    STDERR.begin()


def follow_files() -> None:
    """Continue in new files if the files of the streams have been moved away."""
    STDOUT.follow()
    STDERR.follow()
