"""Who waits says so to whoever listens in its thread, and to nobody else."""

import threading

import pytest

from app.pausing import listen, waiting


def test_where_nobody_listens_nothing_happens() -> None:
    with waiting:
        pass


def test_who_listens_is_told_before_and_after_also_of_a_failure() -> None:
    told: list[str] = []

    def wait_twice() -> None:
        listen(lambda: told.append("leaves"), lambda: told.append("is back"))
        with waiting:
            told.append("waits")
        with pytest.raises(OSError, match="gone"), waiting:
            raise OSError("gone")

    thread = threading.Thread(target=wait_twice)
    thread.start()
    thread.join()
    assert told == ["leaves", "waits", "is back", "leaves", "is back"]
    with waiting:
        assert len(told) == 5, "it was another thread that listened"
