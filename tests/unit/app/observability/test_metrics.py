"""The folder of the metrics lies where every user may write: nothing of others is touched."""

import os
import time
from pathlib import Path

import pytest

from app.observability.metrics import ServersFolder


def abandoned(path: Path) -> Path:
    """As a master that was killed an hour ago has left it."""
    path.mkdir()
    (path / "counter_0.db").touch()
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


def test_a_folder_of_ours_that_was_left_is_removed(tmp_path: Path) -> None:
    left = abandoned(tmp_path / "tokenhouse-metrics-left")
    made = ServersFolder(tmp_path)
    assert list(tmp_path.iterdir()) == [made.path]
    assert not left.exists()
    made.remove()
    assert not made.path.exists()


def test_a_folder_of_a_running_server_stays(tmp_path: Path) -> None:
    running = ServersFolder(tmp_path)
    os.utime(running.path, (0, 0))
    other = ServersFolder(tmp_path)
    assert set(tmp_path.iterdir()) == {running.path, other.path}
    for folder in (running, other):
        folder.remove()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = abandoned(tmp_path / "elsewhere")
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "tokenhouse-metrics-link").symlink_to(target)
    ServersFolder(folder).remove()
    assert [path.name for path in target.iterdir()] == ["counter_0.db"]
    assert (folder / "tokenhouse-metrics-link").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_folder_of_another_user_is_not_touched(tmp_path: Path) -> None:
    left = abandoned(tmp_path / "tokenhouse-metrics-left")
    os.chown(left, 4, 4)
    ServersFolder(tmp_path).remove()
    assert [path.name for path in left.iterdir()] == ["counter_0.db"]
