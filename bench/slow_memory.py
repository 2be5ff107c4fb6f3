"""What callers that never complete a request cost in memory.

Starts a server with two workers for each kind of caller, opens as many connections as it takes, and prints the memory
(PSS) of the server before and its highest after. Run it on a quiet machine: `.venv/bin/python bench/slow_memory.py`.
"""

import resource
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.server import RunningServer, running_server

CONNECTIONS = 1700
"""Less than two workers hold, so that none is closed for being one too many."""

_FIELDS = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 500) for number in range(58))
_START = b"POST /oauth/token HTTP/1.1\r\nHost: x\r\n"
KINDS = {
    "idle": b"",
    "half a head": _START + _FIELDS,
    "a head and one-byte chunks": _START + _FIELDS + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 2700,
    "a small head and one-byte chunks": _START + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 16_000,
}


def memory_mib(server: RunningServer) -> float:
    """The memory of the master and its workers."""
    processes = [server.process.pid, *server.workers()]
    return float(sum(psutil.Process(pid).memory_full_info().pss for pid in processes)) / 2**20


def measure(kind: str, sent: bytes) -> None:
    """Open the connections, and print."""
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), "--workers", "2") as server:
        client = server.create_client()
        for _ in range(20):
            server.get_token(client)
        before = highest = memory_mib(server)
        with ExitStack() as stack:
            for _ in range(CONNECTIONS):
                caller = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                with suppress(OSError):
                    caller.sendall(sent)
            for _ in range(20):
                highest = max(highest, memory_mib(server))
                time.sleep(0.1)
        each = (highest - before) * 1024 / CONNECTIONS
        print(f"{kind:<34} {before:4.0f} MiB before, {highest:4.0f} MiB after, {each:5.1f} KiB each", flush=True)


def main() -> None:
    """Measure each kind."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    print(f"{CONNECTIONS} connections to two workers")
    for kind, sent in KINDS.items():
        measure(kind, sent)


if __name__ == "__main__":
    main()
