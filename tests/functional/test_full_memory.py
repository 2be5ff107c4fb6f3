"""The folder in memory is full or read-only: a start says so in one line, and a running server goes on."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.server import RunningServer, free_port, wait_until

from app.config.values import PROJECT_FOLDER

_MOUNT = "mount -t tmpfs -o {} tmpfs /dev/shm"
_CAN_MOUNT = subprocess.run(["unshare", "-m", "sh", "-c", _MOUNT.format("size=64k")], capture_output=True, check=False)

needs_mounts = pytest.mark.skipif(_CAN_MOUNT.returncode != 0, reason="only root may mount a separate /dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder outside /dev/shm, because the server has a separate /dev/shm."""
    with tempfile.TemporaryDirectory(prefix="tokenhouse-", dir="/var/tmp") as folder:
        yield Path(folder)


@contextlib.contextmanager
def server_with(memory: str, folder: Path, **settings: str) -> Iterator[RunningServer]:
    """A server that is not started yet, with a separate /dev/shm."""
    server = RunningServer(folder, **settings)
    server.prefix = ("unshare", "-m", "sh", "-c", f'{_MOUNT.format(memory)} && exec "$@"', "sh")
    server.prepare()
    try:
        yield server
    finally:
        if hasattr(server, "process"):
            server.stop()


def with_metrics() -> dict[str, str]:
    return {"TOKENHOUSE_METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}


@needs_mounts
def test_a_start_without_room_for_metrics_is_refused_in_one_line(tmp_path: Path) -> None:
    with server_with("size=600k", tmp_path, **with_metrics()) as server:
        with pytest.raises(AssertionError, match="gunicorn ended"):
            server.start("--workers", "2")
        (said,) = [line for line in server.stderr_path.read_text().splitlines() if not line.startswith("{")]
        assert said == (
            "tokenhouse: metrics need 640 KiB in /dev/shm: No space left on device; make room there, or set "
            "TOKENHOUSE_METRICS_ADDRESS= (empty) to do without metrics"
        )


@needs_mounts
@pytest.mark.parametrize("memory", ["size=200k", "size=2m,ro"])
def test_without_metrics_little_room_is_enough(tmp_path: Path, memory: str) -> None:
    with server_with(memory, tmp_path) as server:
        server.start("--workers", "2")
        assert server.get_token(server.create_client())


@needs_mounts
def test_where_memory_is_read_only_metrics_are_kept_elsewhere(tmp_path: Path) -> None:
    with server_with("size=2m,ro", tmp_path, TMPDIR=str(tmp_path), **with_metrics()) as server:
        server.start("--workers", "1")
        assert server.get_token(server.create_client())
        assert list(tmp_path.glob("tokenhouse-metrics-*/counter_0.db"))


@needs_mounts
def test_memory_that_fills_up_later_costs_no_worker(tmp_path: Path) -> None:
    with server_with("size=1m", tmp_path, **with_metrics()) as server:
        server.start("--workers", "1")
        client = server.create_client()
        filler = Path("/proc", str(server.process.pid), "root", "dev/shm/filler")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        (before,) = server.workers()
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: server.workers() not in ({before}, set()))
        # One worker more, for which there is no room.
        server.process.send_signal(signal.SIGTTIN)
        wait_until(lambda: "records no metrics: No space left on device" in server.stderr_path.read_text())
        workers = server.workers()
        for _ in range(40):
            server.get_token(client)
        assert server.workers() == workers
        assert "SIGBUS" not in server.stderr_path.read_text()


def test_workers_that_a_signal_kills_at_once_are_replaced_slowly(tmp_path: Path) -> None:
    config, flag = tmp_path / "gunicorn.py", tmp_path / "kill"
    config.write_text(
        "import os, pathlib, runpy, signal\n"
        f"globals().update(runpy.run_path({str(PROJECT_FOLDER / 'config' / 'gunicorn.py')!r}))\n"
        "begin = post_fork\n"
        "def post_fork(server, worker):\n"
        "    begin(server, worker)\n"
        f"    if pathlib.Path({str(flag)!r}).exists():\n"
        "        os.kill(os.getpid(), signal.SIGBUS)\n"
    )
    server = RunningServer(tmp_path)
    server.prepare()
    server.start("--workers", "1", "--config", str(config))
    try:
        (worker,) = server.workers()
        flag.touch()
        os.kill(worker, signal.SIGKILL)
        time.sleep(4)
        assert 2 <= server.stderr_path.read_text().count("was sent SIGBUS") <= 5
        flag.unlink()
        client = server.create_client()
        wait_until(lambda: len(server.workers()) == 1)
        assert server.get_token(client)
    finally:
        server.stop()
