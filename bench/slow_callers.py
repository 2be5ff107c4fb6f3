"""Compare gunicorn workers, and waitress: what do slow callers do to a new one, and what does a request cost.

Needs ``wrk`` and what ``make bench`` installs. Run from the checkout: ``python bench/slow_callers.py``, or
name the candidates. The figures of ``buffered_worker/README.md`` come from here.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
CANDIDATES = {
    "sync": ["--worker-class", "sync"],
    "gthread 2x4": ["--worker-class", "gthread", "--threads", "4"],
    "gthread 2x128": ["--worker-class", "gthread", "--threads", "128"],
    "gevent": ["--worker-class", "gevent"],
    "buffered 2x1": ["--worker-class", "app.operations.worker.TokenhouseWorker", "--threads", "1"],
    "buffered 2x8": ["--worker-class", "app.operations.worker.TokenhouseWorker", "--threads", "8"],
    "waitress 1x8": ["waitress", "--threads", "8", "--connection-limit", "2000", "--channel-timeout", "10"],
}
NEEDED = {"gevent": "gevent", "waitress 1x8": "waitress"}
HALF_HEAD = b"POST / HTTP/1.1\r\nHost:"
HALF_BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
KINDS = {"idle": b"", "half head": HALF_HEAD, "half body": HALF_BODY, "byte a second": b""}
CALLERS_OF_A_KIND = 200
CONNECTIONS = 16
SPREAD_RUNS = 15
ROUNDS = 3
SECONDS = 2


def empty(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The application that does nothing, but reads its body and tells its process."""
    environ["wsgi.input"].read()
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class Server:
    """A running gunicorn with two workers, or a waitress, which is one process."""

    def __init__(self, arguments: list[str], log: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = probe.getsockname()
        if arguments[0] == "waitress":
            address = f"{self.address[0]}:{self.address[1]}"
            command = [sys.executable, "-m", *arguments, "--listen", address, "slow_callers:empty"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
            self._wait_for(subprocess.Popen(command, stderr=log, env=environment), processes=1)
            return
        command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "tests/support/echo_gunicorn.py")]
        command += [
            "--workers",
            "2",
            "--pythonpath",
            f"{ROOT},{ROOT / 'bench'}",
            "-b",
            f"127.0.0.1:{self.address[1]}",
            *arguments,
        ]
        self._wait_for(subprocess.Popen([*command, "slow_callers:empty"], stderr=log), processes=2)

    def _wait_for(self, process: subprocess.Popen[bytes], *, processes: int) -> None:
        self.process = process
        pids: set[int] = set()
        while len(pids) < processes:
            time.sleep(0.05)
            with contextlib.suppress(OSError, ValueError):
                pids.add(self.ask())
        self.pids = pids

    def ask(self, timeout: float = 5) -> int:
        """One request on a new connection; the answer is the worker's process."""
        with socket.create_connection(self.address, timeout=timeout) as caller:
            caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
            received = b"".join(iter(lambda: caller.recv(65536), b""))
        return int(received.partition(b"\r\n\r\n")[2])

    def cpu_seconds(self) -> float:
        """CPU time of all workers."""
        fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(arguments: list[str]) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        server = Server(arguments, log)
        try:
            yield server
        finally:
            server.process.kill()
            server.process.wait()
            for pid in server.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)


def wait_for_ends(callers: dict[socket.socket, str], seconds: float) -> dict[str, list[float]]:
    began = time.monotonic()
    ends: dict[str, list[float]] = {kind: [] for kind in callers.values()}
    with selectors.DefaultSelector() as selector:
        for caller, kind in callers.items():
            selector.register(caller, selectors.EVENT_READ, kind)
        while selector.get_map() and (left := began + seconds - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                try:
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                except OSError:
                    data = b""
                if not data:
                    ends[key.data].append(time.monotonic() - began)
                    selector.unregister(key.fileobj)
    return ends


def drip(callers: list[socket.socket], done: threading.Event) -> None:
    for byte in HALF_BODY:
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.send(bytes([byte]))
        if done.wait(1):
            return


def besiege(arguments: list[str], kinds: dict[str, bytes]) -> tuple[str, str]:
    """The slowest answer to a new caller over 10.5 s, and how many of the half-way were closed in 10 s."""
    with running(arguments) as server, contextlib.ExitStack() as stack:
        callers = {}
        for kind, sent in kinds.items():
            for _ in range(CALLERS_OF_A_KIND):
                caller = stack.enter_context(socket.create_connection(server.address, timeout=5))
                caller.sendall(sent)
                callers[caller] = kind
        done, ends, answers = threading.Event(), {}, []
        dripping = [caller for caller, kind in callers.items() if kind == "byte a second"]
        threading.Thread(target=drip, args=(dripping, done), daemon=True).start()
        waiter = threading.Thread(target=lambda: ends.update(wait_for_ends(callers, 10)))
        waiter.start()
        while waiter.is_alive():
            began = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                server.ask(timeout=10)
            answers.append(time.monotonic() - began)
            time.sleep(0.1)
        done.set()
    slowest = max(answers)
    closed = {kind: len(times) for kind, times in ends.items() if kind != "idle"}
    told = ", ".join(f"{count} of {CALLERS_OF_A_KIND}" for count in closed.values()) if closed else "-"
    return (f"{slowest * 1000:.0f} ms" if slowest < 9.9 else "none in 10 s"), told


def best_load(server: Server, *arguments: str) -> tuple[float, float]:
    """The best of some rounds: whatever else the machine does makes them worse only."""
    rounds = [load(server, *arguments) for _ in range(ROUNDS)]
    return max(rate for rate, _ in rounds), min(cost for _, cost in rounds)


def load(server: Server, *arguments: str) -> tuple[float, float]:
    """Requests a second, and CPU microseconds of the workers for each request."""
    before = server.cpu_seconds()
    url = f"http://127.0.0.1:{server.address[1]}/"
    command = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{SECONDS}", *arguments, url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = server.cpu_seconds() - before
    served = re.search(r"(\d+) requests in", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert served  # noqa: S101
    assert rate  # noqa: S101
    return float(rate[1]), spent / max(int(served[1]), 1) * 1e6


def spread(server: Server) -> list[int]:
    """In each run, how many of 16 kept connections, opened at once, the less used worker has."""
    fewest: list[int] = []
    port = f":{server.address[1]:04X}"
    while len(fewest) < SPREAD_RUNS:
        url = f"http://127.0.0.1:{server.address[1]}/"
        wrk = subprocess.Popen(["wrk", "-t2", f"-c{CONNECTIONS}", "-d1", url], stdout=subprocess.DEVNULL)
        while wrk.poll() is None:
            time.sleep(0.1)
            counts = [established(pid, port) for pid in server.pids]
            if sum(counts) == CONNECTIONS:
                fewest.append(min(counts))
                break
        wrk.wait()
    return fewest


def established(pid: int, port: str) -> int:
    lines = (line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:])
    inodes = {f"socket:[{one[9]}]" for one in lines if one[1].endswith(port) and one[3] == "01"}
    links = []
    for file in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(file.readlink()))
    return len(inodes.intersection(links))


def measure(name: str) -> None:
    arguments = CANDIDATES[name]
    for kind, sent in KINDS.items():
        slowest, closed = besiege(arguments, {kind: sent})
        print(f"  200 {kind:14} slowest new answer {slowest:>12}   closed within 10 s: {closed}", flush=True)
    slowest, closed = besiege(arguments, KINDS)
    print(f"  all 800 at once    slowest new answer {slowest:>12}   closed within 10 s: {closed}", flush=True)
    with running(arguments) as server:
        for label, headers in (("kept", []), ("closed", ["-H", "Connection: close"])):
            if name == "sync" and label == "kept":
                continue  # It keeps no connection.
            rate, cost = best_load(server, *headers)
            print(f"  connections {label:8} {rate:6.0f} requests/s  {cost:4.0f} us CPU each", flush=True)
        if name not in {"sync", "waitress 1x8"}:
            print(f"  of 16 connections, the less used worker has {spread(server)}", flush=True)


def main() -> None:
    for name in sys.argv[1:] or CANDIDATES:
        if name in NEEDED and not importlib.util.find_spec(NEEDED[name]):
            print(f"{name}: not installed (requirements-dev.txt has it)")
            continue
        print(name, flush=True)
        measure(name)


if __name__ == "__main__":
    main()
