"""A server that runs never ends because of what lies on the disk: only a first start refuses."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from support.server import NewClient, RunningServer, wait_until

WORKERS = 2
PATIENCE_SECONDS = 20
PROJECT = Path(__file__).resolve().parent.parent.parent


class Served:
    """A server with a client, whose peppers are in a file."""

    def __init__(self, folder: Path) -> None:
        self.peppers = folder / "peppers"
        self.peppers.write_text(f"p1:{'p' * 40}\n")
        self.config = folder / "gunicorn.py"
        # As running servers are configured: a file that somebody may break.
        self.config.write_text(
            f"from runpy import run_path\nglobals().update(run_path({str(PROJECT / 'config' / 'gunicorn.py')!r}))\n"
        )
        self.server = RunningServer(
            folder, TOKENHOUSE_SECRET_PEPPERS="", TOKENHOUSE_SECRET_PEPPERS_FILE=str(self.peppers)
        )
        self.server.prepare()
        self.server.start("--workers", str(WORKERS), "--config", str(self.config))
        self.client: NewClient = self.server.create_client()

    @property
    def pem(self) -> Path:
        return next(self.server.folder.glob("*.pem"))

    @property
    def ring(self) -> Path:
        return self.server.folder / "keyring.toml"

    def replace_workers(self) -> None:
        """Kill all, and wait for their heirs, which must serve."""
        before = self.server.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(self.server.workers() - before) == WORKERS and self.serves())

    def serves(self) -> bool:
        try:
            return all(self.token_status() == 200 for _ in range(8))
        except requests.ConnectionError:
            return False

    def token_status(self) -> int:
        return self.server.post_token(headers={"Authorization": self.client.basic}).status_code

    def ready(self) -> tuple[int, str]:
        answer = requests.get(f"{self.server.url}/readyz", timeout=10)
        return answer.status_code, answer.json()["status"]

    def hang_up(self) -> None:
        self.server.process.send_signal(signal.SIGHUP)

    def said(self, words: str) -> int:
        return self.server.stderr_path.read_text().count(words)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.server.stop()


def break_ring(served: Served) -> Callable[[], None]:
    content = served.ring.read_text()
    served.ring.write_text(content.replace("signs_from", "sings_from", 1))
    return lambda: put(served.ring, content)


def lose_ring(served: Served) -> Callable[[], None]:
    content = served.ring.read_text()
    served.ring.unlink()
    return lambda: put(served.ring, content)


def lose_key(served: Served) -> Callable[[], None]:
    pem = served.pem
    content = pem.read_text()
    pem.unlink()
    return lambda: put(pem, content)


def open_key(served: Served) -> Callable[[], None]:
    served.pem.chmod(0o644)
    return lambda: served.pem.chmod(0o600)


def lose_peppers(served: Served) -> Callable[[], None]:
    content = served.peppers.read_text()
    served.peppers.unlink()
    return lambda: put(served.peppers, content)


def spoil_peppers(served: Served) -> Callable[[], None]:
    content = served.peppers.read_text()
    served.peppers.write_text("p1:short")
    return lambda: put(served.peppers, content)


def break_gunicorns_settings(served: Served) -> Callable[[], None]:
    content = served.config.read_text()
    served.config.write_text("workers = = 2")
    return lambda: put(served.config, content)


def put(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content)


@pytest.mark.parametrize("spoil", [break_ring, lose_ring, lose_key, open_key])
def test_a_ring_that_is_broken_ends_nothing(served: Served, spoil: Callable[[Served], Callable[[], None]]) -> None:
    mend = spoil(served)
    served.replace_workers()
    wait_until(lambda: all(served.ready() == (200, "degraded") for _ in range(8)))
    served.hang_up()
    wait_until(lambda: served.said("SIGHUP changed nothing: fix this, then send it again: ") == 1)
    assert served.serves()
    served.replace_workers()
    mend()
    served.hang_up()
    wait_until(lambda: served.serves() and all(served.ready() == (200, "ok") for _ in range(8)))
    assert served.said("Traceback") == 0


@pytest.mark.parametrize("spoil", [lose_peppers, spoil_peppers, break_gunicorns_settings])
def test_settings_that_are_wrong_end_nothing(served: Served, spoil: Callable[[Served], Callable[[], None]]) -> None:
    before = served.server.workers()
    mend = spoil(served)
    served.replace_workers()
    served.hang_up()
    wait_until(lambda: served.said("SIGHUP changed nothing: fix this, then send it again: ") == 1)
    assert all(served.ready() == (200, "degraded") for _ in range(8))
    served.replace_workers()
    mend()
    before = served.server.workers()
    served.hang_up()
    wait_until(lambda: not before & served.server.workers())
    wait_until(lambda: served.serves() and all(served.ready() == (200, "ok") for _ in range(8)))


def test_of_a_reload_that_is_refused_nothing_is_kept(served: Served) -> None:
    """Good new settings beside a broken file of gunicorn's: workers born later must be like their siblings."""
    break_gunicorns_settings(served)
    served.peppers.write_text(f"p2:{'q' * 40}\n")
    served.hang_up()
    wait_until(lambda: served.said("SIGHUP changed nothing: fix this, then send it again: ") == 1)
    served.replace_workers()


def test_a_machine_on_which_no_worker_can_start_is_waited_for(served: Served) -> None:
    """Here no file can be opened any more: not a ring, not a socket."""
    pid = served.server.process.pid
    limits = psutil.Process(pid).rlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    psutil.Process(pid).rlimit(resource.RLIMIT_NOFILE, (open_now + 1, limits[1]))
    for worker in served.server.workers():
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: served.said("Worker exiting") >= WORKERS)
    assert served.server.process.poll() is None
    psutil.Process(pid).rlimit(resource.RLIMIT_NOFILE, limits)
    wait_until(served.serves)


@pytest.mark.parametrize("spoil", [break_ring, lose_ring, lose_key, open_key, lose_peppers, spoil_peppers])
def test_a_first_start_refuses_with_one_line(tmp_path: Path, spoil: Callable[[Served], Callable[[], None]]) -> None:
    served = Served(tmp_path)
    served.server.stop()
    spoil(served)
    served.server.stderr_path.write_text("")
    with pytest.raises(AssertionError, match="gunicorn ended"):
        served.server.start("--config", str(served.config))
    told = served.server.stderr_path.read_text().splitlines()
    assert len([line for line in told if line.startswith("tokenhouse: ")]) == 1
    assert not [line for line in told if "Traceback" in line]


def test_a_new_master_takes_over_and_the_old_one_ends(tmp_path: Path) -> None:
    """USR2, as for new code."""
    served = Served(tmp_path)
    served.server.stop()
    pid_file = tmp_path / "pid"
    served.server.start("--workers", str(WORKERS), "--config", str(served.config), "--pid", str(pid_file))
    old = served.server.process
    old.send_signal(signal.SIGUSR2)
    wait_until(pid_file.with_suffix(".2").exists)
    new = psutil.Process(int(pid_file.with_suffix(".2").read_text()))
    try:
        wait_until(lambda: len(new.children()) == WORKERS)
        old.terminate()
        assert old.wait(timeout=PATIENCE_SECONDS) == 0
        wait_until(served.serves)
        served.hang_up = lambda: new.send_signal(signal.SIGHUP)  # type: ignore[method-assign]
        mend = break_ring(served)
        served.hang_up()
        wait_until(lambda: served.said("SIGHUP changed nothing") == 1)
        assert served.serves()
        mend()
    finally:
        new.terminate()
        new.wait(timeout=PATIENCE_SECONDS)
