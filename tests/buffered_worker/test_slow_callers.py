"""Slow callers, full houses, restarts: a new request is answered all the same."""

import contextlib
import itertools
import pathlib
import resource
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))
from echo_app import Server, read_all, read_one, serve, split_answers

from app.errors import http_error_body

HALF_HEAD = b"POST /a HTTP/1.1\r\nHost:"
HALF_BODY = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
GET_PID = b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n"
HASTY = "echo_app.HastyWorker"


class Siege(NamedTuple):
    slowest_answer: float
    closed_after: dict[str, list[float]]
    still_open: dict[str, int]


def wait_for_end(callers: dict[socket.socket, str], seconds: float) -> dict[str, list[float]]:
    """When each caller saw its connection end, by kind, in seconds from now."""
    began, ends = time.monotonic(), {kind: [] for kind in callers.values()}
    with selectors.DefaultSelector() as selector:
        for caller, kind in callers.items():
            selector.register(caller, selectors.EVENT_READ, kind)
        while selector.get_map() and (left := began + seconds - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                try:
                    data = key.fileobj.recv(65536)
                except ConnectionError:
                    data = b""
                if not data:
                    ends[key.data].append(time.monotonic() - began)
                    selector.unregister(key.fileobj)
    return ends


def drip(callers: list[socket.socket], done: threading.Event) -> None:
    """One byte a second to each of ``callers``."""
    for byte in HALF_BODY:
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.send(bytes([byte]))
        if done.wait(1):
            return


@pytest.fixture(scope="module")
def siege() -> Iterator[Siege]:
    """Two hundred slow callers of each kind at once, at the worker's true patience."""
    begun = {"idle": b"", "half head": HALF_HEAD, "half body": HALF_BODY, "byte a second": b""}
    done = threading.Event()
    with serve("--workers", "2") as server, contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        callers = {stack.enter_context(server.connect(sent)): kind for kind, sent in begun.items() for _ in range(200)}
        pool.submit(drip, [caller for caller, kind in callers.items() if kind == "byte a second"], done)
        ends = pool.submit(wait_for_end, callers, 11)
        answers = []
        while not ends.done():
            began = time.monotonic()
            server.get("/a")
            answers.append(time.monotonic() - began)
            done.wait(0.2)
        done.set()
        closed = ends.result()
        yield Siege(max(answers), closed, {kind: 200 - len(times) for kind, times in closed.items()})


def test_a_new_request_is_answered_while_eight_hundred_callers_are_slow(siege: Siege) -> None:
    assert siege.slowest_answer < 1


@pytest.mark.parametrize("kind", ["half head", "half body", "byte a second"])
def test_two_hundred_callers_that_are_half_way_are_closed_within_ten_seconds(siege: Siege, kind: str) -> None:
    assert siege.still_open[kind] == 0
    assert max(siege.closed_after[kind]) < 10


def test_idle_connections_may_stay(siege: Siege) -> None:
    assert siege.still_open["idle"] == 200


@pytest.mark.parametrize("sent", [HALF_HEAD, HALF_BODY])
def test_a_caller_that_is_too_slow_is_told_so(sent: bytes) -> None:
    with serve("--workers", "1", worker=HASTY) as server, server.connect(sent) as caller:
        (answer,) = split_answers(read_all(caller))
    assert answer.status == "HTTP/1.1 408 Request Timeout"
    assert answer.json == http_error_body(408)


def test_an_idle_connection_stays_as_long_as_the_setting_says() -> None:
    with (
        serve("--workers", "1", "--keep-alive", "2") as server,
        server.connect(GET_PID) as used,
        server.connect() as new,
    ):
        read_one(used)
        ends = wait_for_end({used: "used", new: "new"}, 5)
    assert 1.5 < ends["used"][0] < 4
    assert 1.5 < ends["new"][0] < 4


def test_a_full_house_lets_the_longest_idle_go_first() -> None:
    with serve("--workers", "1", "--worker-connections", "40") as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect(GET_PID)) for _ in range(40)]
        for caller in idle:
            read_one(caller)
        assert server.get("/a")
        first, last = idle[0], idle[-1]
        assert read_all(first) == b""
        last.sendall(GET_PID)
        assert read_one(last).status == "HTTP/1.1 200 OK"


def test_a_house_full_of_half_way_callers_still_lets_a_new_one_in() -> None:
    with serve("--workers", "1", "--worker-connections", "40") as server, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(server.connect(HALF_HEAD))
        began = time.monotonic()
        assert server.get("/a")
        assert time.monotonic() - began < 1


def test_beyond_the_memory_for_incomplete_requests_the_largest_are_closed() -> None:
    large = HALF_HEAD + b" x\r\n" + (b"X-%d: " % 1 + b"a" * 8000 + b"\r\n") * 2
    worker = "echo_app.FrugalWorker"
    with serve("--workers", "1", worker=worker) as server, contextlib.ExitStack() as stack:
        small = [stack.enter_context(server.connect(HALF_HEAD)) for _ in range(5)]
        callers = {stack.enter_context(server.connect(large)): "large" for _ in range(10)}
        # Four of them are more than the limit allows; the deadline of all is later.
        assert len(wait_for_end(callers, 4)["large"]) == 4
        for caller in small:
            caller.sendall(b" x\r\nContent-Length: 2\r\n\r\nab")
            assert read_one(caller).json["length"] == 2


def test_a_worker_without_free_file_descriptors_still_lets_a_new_caller_in() -> None:
    with serve("--workers", "1") as server, contextlib.ExitStack() as stack:
        resource.prlimit(server.get("/pid")["pid"], resource.RLIMIT_NOFILE, (50, 50))
        for _ in range(100):
            stack.enter_context(server.connect(HALF_HEAD))
        began = time.monotonic()
        assert server.get("/a")
        assert time.monotonic() - began < 1


def test_callers_that_do_not_read_hold_up_nobody_and_are_closed() -> None:
    with serve("--workers", "1", worker=HASTY) as server, contextlib.ExitStack() as stack:
        before = server.get("/files")["files"]
        for _ in range(10):
            stack.enter_context(server.connect(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n" * 20))
        began = time.monotonic()
        assert server.get("/files")["files"] == before + 10
        assert time.monotonic() - began < 1
        while server.get("/files")["files"] > before:
            assert time.monotonic() - began < 5


def test_sixteen_kept_connections_are_shared_by_two_workers() -> None:
    """How evenly is measured in bench/; here, that neither goes without, as happens with stock workers."""
    with serve("--workers", "2") as server, contextlib.ExitStack() as stack:
        while len({server.get("/pid")["pid"] for _ in range(10)}) < 2:
            pass
        pids: list[int] = []
        # On a busy machine one of the two may sleep through all of them, once.
        for _ in range(5):
            callers = [stack.enter_context(server.connect()) for _ in range(16)]
            for caller in callers:
                caller.sendall(GET_PID)
            pids = [read_one(caller).json["pid"] for caller in callers]
            if len(set(pids)) > 1 and min(map(pids.count, set(pids))) >= 2:
                break
            stack.close()
    assert len(set(pids)) == 2
    assert min(map(pids.count, set(pids))) >= 2


def test_at_sigterm_every_request_that_has_begun_ends_well() -> None:
    with serve("--workers", "1") as server, contextlib.ExitStack() as stack:
        idle, half, busy = (stack.enter_context(server.connect()) for _ in range(3))
        idle.sendall(GET_PID)
        read_one(idle)
        half.sendall(GET_PID[:20])
        busy.sendall(b"GET /sleep?1.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        server.get("/a")
        server.process.send_signal(signal.SIGTERM)
        while not any("Handling signal: term" in line for line in server.log):
            pass
        half.sendall(GET_PID[20:])
        assert read_one(half).status == "HTTP/1.1 200 OK"
        answer = read_one(busy)
        assert answer.status == "HTTP/1.1 200 OK"
        assert answer.headers["Connection"] == "close"
        assert read_all(idle) == b""
        assert server.process.wait(10) == 0


def test_a_worker_that_has_served_enough_is_replaced_and_no_request_fails() -> None:
    with serve("--workers", "2", "--max-requests", "10", "--max-requests-jitter", "5") as server:
        pids: set[int] = set()
        began = time.monotonic()
        while len(pids) < 4:
            pids.add(server.get("/pid")["pid"])
            assert time.monotonic() - began < 15


def test_a_reload_fails_no_request_of_busy_connections() -> None:
    with serve("--workers", "2") as server, ThreadPoolExecutor(8) as pool:
        done = threading.Event()

        def keep_asking() -> set[int]:
            pids = set()
            while not done.is_set():
                with server.connect() as caller:
                    kept = True
                    while kept and not done.is_set():
                        caller.sendall(GET_PID)
                        answer = read_one(caller)
                        pids.add(answer.json["pid"])
                        kept = answer.headers["Connection"] == "keep-alive"
            return pids

        before = {server.get("/pid")["pid"] for _ in range(20)}
        callers = [pool.submit(keep_asking) for _ in range(8)]
        try:
            server.process.send_signal(signal.SIGHUP)
            for pid in before:
                while pathlib.Path(f"/proc/{pid}").exists():
                    assert not done.wait(0.05)
        finally:
            done.set()
        assert set().union(*(caller.result() for caller in callers)) - before


def test_a_worker_with_a_thread_that_hangs_serves_on_and_is_replaced() -> None:
    with serve("--workers", "1", "--timeout", "2", "--graceful-timeout", "3") as server:
        pid = server.get("/pid")["pid"]
        with server.connect(b"GET /sleep?60 HTTP/1.1\r\nHost: a\r\n\r\n") as hung:
            assert server.get("/pid")["pid"] == pid
            assert read_all(hung) == b""
            assert server.get("/pid")["pid"] != pid


def test_no_heartbeat_is_lost_while_a_worker_is_idle_or_busy() -> None:
    with serve("--workers", "1", "--timeout", "2") as server:
        pid = server.get("/pid")["pid"]
        for _ in range(3):
            server.get("/sleep?1.5")
        assert server.get("/pid")["pid"] == pid


def from_address(stack: contextlib.ExitStack, server: Server, address: str, sent: bytes = b"") -> socket.socket:
    caller = stack.enter_context(socket.create_connection(server.address, timeout=15, source_address=(address, 0)))
    caller.sendall(sent)
    return caller


def flood(server: Server, stack: contextlib.ExitStack, done: threading.Event) -> None:
    """A hundred new connections a second, each from another address, each with one byte."""
    numbers = itertools.count()
    while not done.wait(0.1):
        for number in itertools.islice(numbers, 10):
            with contextlib.suppress(OSError):
                from_address(stack, server, f"127.1.{number // 250}.{number % 250 + 1}", b"G")


def test_a_newcomer_whose_first_byte_is_on_its_way_is_not_thrown_out() -> None:
    """Eighty milliseconds away, while a full house takes in a hundred callers a second that say no more than a byte."""
    done = threading.Event()
    with (
        serve("--workers", "1", "--worker-connections", "300") as server,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(1) as pool,
    ):
        flooding = pool.submit(flood, server, stack, done)
        try:
            answered = 0
            until = time.monotonic() + 8
            while time.monotonic() < until:
                with server.connect() as caller:
                    time.sleep(0.08)
                    caller.sendall(GET_PID)
                    assert read_one(caller).status == "HTTP/1.1 200 OK"
                    answered += 1
            assert answered > 20
        finally:
            done.set()
        flooding.result()


def test_an_address_that_holds_more_than_its_share_makes_room_itself() -> None:
    with serve("--workers", "1", "--worker-connections", "40") as server, contextlib.ExitStack() as stack:
        other = from_address(stack, server, "127.0.0.2", GET_PID)
        read_one(other)
        for _ in range(100):
            from_address(stack, server, "127.0.0.3", b"G")
        assert server.get("/a")
        other.sendall(GET_PID)
        assert read_one(other).status == "HTTP/1.1 200 OK"


def test_a_thread_is_left_for_what_never_waits_and_the_others_lose_nothing() -> None:
    with serve("--workers", "1", "--threads", "3") as server, contextlib.ExitStack() as stack:
        slow = b"GET /sleep?1 HTTP/1.1\r\nHost: a\r\n\r\n"
        busy = [stack.enter_context(server.connect(slow)) for _ in range(2)]
        time.sleep(0.2)
        last = GET_PID.replace(b"Host: x", b"Connection: close\r\nHost: x")
        postponed = [stack.enter_context(server.connect(slow + last)) for _ in range(2)]
        for path in ("/livez", "/.well-known/jwks.json", "/tokens/livez"):
            began = time.monotonic()
            assert server.get(path)["path"] == path
            assert time.monotonic() - began < 0.5
        assert [read_one(caller).json["path"] for caller in busy] == ["/sleep"] * 2
        for caller in postponed:
            first, second = split_answers(read_all(caller))
            assert first.json["path"] == "/sleep"
            assert "pid" in second.json


def test_a_thread_that_waits_and_does_not_say_so_holds_up_the_others_for_a_moment_only() -> None:
    with serve("--workers", "1", "--threads", "3") as server, contextlib.ExitStack() as stack:
        hanging = stack.enter_context(server.connect(b"GET /hang?8 HTTP/1.1\r\nHost: a\r\n\r\n"))
        time.sleep(0.2)
        began = time.monotonic()
        assert server.get("/a")["path"] == "/a"
        assert time.monotonic() - began < 4
        for _ in range(20):
            began = time.monotonic()
            assert server.get("/a")["path"] == "/a"
            assert time.monotonic() - began < 0.5
        assert read_one(hanging).json["path"] == "/hang"


def test_at_sigterm_who_was_postponed_is_still_served() -> None:
    with serve("--workers", "1", "--threads", "2") as server, contextlib.ExitStack() as stack:
        slow = b"GET /sleep?1 HTTP/1.1\r\nHost: a\r\n\r\n"
        callers = [stack.enter_context(server.connect(slow)) for _ in range(3)]
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert [read_one(caller).status for caller in callers] == ["HTTP/1.1 200 OK"] * 3
        assert server.process.wait(10) == 0
