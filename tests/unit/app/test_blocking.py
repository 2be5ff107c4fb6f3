"""A blocking section calls the hooks of its own thread, and no others."""

import threading

import pytest

from app.blocking import blocking, on_blocking


def test_without_hooks_nothing_happens() -> None:
    with blocking:
        pass


def test_hooks_are_called_before_and_after_even_on_failure_and_in_their_thread_only() -> None:
    calls: list[str] = []

    def block_twice() -> None:
        on_blocking(lambda: calls.append("before"), lambda: calls.append("after"))
        with blocking:
            calls.append("inside")
        with pytest.raises(OSError, match="gone"), blocking:
            raise OSError("gone")

    thread = threading.Thread(target=block_twice)
    thread.start()
    thread.join()
    assert calls == ["before", "inside", "after", "before", "after"]
    with blocking:
        assert len(calls) == 5, "another thread's hooks were called"
