"""Lines never hold anybody up: real pipes, sockets and files, with readers that stall and disks that are full."""

import fcntl
import io
import multiprocessing
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

import pytest
import time_machine

from buffered_worker import stream as streams
from buffered_worker.stream import NonBlockingStream

WAIT_SECONDS = 10
LINE = "x" * 99 + "\n"
PIPE_BYTES = 4096
fork = multiprocessing.get_context("fork")


class Pipe:
    """A small pipe, whose reader reads when it is told to."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.stream: TextIO = os.fdopen(writing, "w")
        os.set_blocking(self.reading, False)

    def read(self) -> str:
        """All that is there."""
        found = b""
        while True:
            try:
                piece = os.read(self.reading, 65536)
            except BlockingIOError:
                return found.decode()
            if not piece:
                return found.decode()
            found += piece

    def close(self) -> None:
        os.close(self.reading)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
def writer(pipe: Pipe) -> Iterator[NonBlockingStream]:
    made = NonBlockingStream(lambda: pipe.stream)
    made.begin()
    yield made
    pipe.read()
    made.stop()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def gathered(pipe: Pipe, size: int) -> str:
    """Read until there are ``size`` characters."""
    found = ""
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found) < size:
        assert time.monotonic() < deadline, f"{len(found)} of {size}"
        found += pipe.read()
    return found


def test_a_process_that_does_not_serve_writes_as_it_always_did() -> None:
    stream = io.StringIO()
    made = NonBlockingStream(lambda: stream)
    made.write("a line\n")
    assert stream.getvalue() == "a line\n"
    assert not made.isatty()
    assert not made.is_stalled
    NonBlockingStream(lambda: None).write("to nobody\n")


def test_a_line_is_there_at_once(pipe: Pipe, writer: NonBlockingStream) -> None:
    number = writer.put("first\n")
    assert pipe.read() == "first\n"
    assert writer.is_written(number, 0)
    writer.write("Größe\ud800\n")
    assert pipe.read() == "Größe\\ud800\n"


def test_nobody_waits_for_a_reader_that_stalls_and_nothing_is_lost(pipe: Pipe, writer: NonBlockingStream) -> None:
    sent = [f"{number:05} {LINE}" for number in range(1000)]
    last = [writer.put(line) for line in sent][-1]
    assert not writer.is_written(last, 0)
    assert gathered(pipe, sum(map(len, sent))) == "".join(sent)
    assert writer.is_written(last, WAIT_SECONDS)


def test_it_is_stalled_when_a_line_has_waited_for_long(
    pipe: Pipe, writer: NonBlockingStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STALLED_SECONDS", 0.05)
    for _ in range(100):
        writer.put(LINE)
    wait_until(lambda: writer.is_stalled)
    gathered(pipe, 100 * len(LINE))
    wait_until(lambda: not writer.is_stalled)


def test_what_finds_no_room_is_counted_and_the_count_is_written(
    pipe: Pipe, writer: NonBlockingStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "QUEUE_LIMIT_BYTES", 20 * len(LINE))
    writer.describe_loss = lambda lost: f"lost {lost}\n"
    filled = 0
    while not writer.is_stalled:
        writer.put(LINE)
        filled += 1
    for _ in range(6):
        assert not writer.is_written(writer.put(LINE), 0)
    expected = LINE * (filled - 1) + "lost 7\n"
    assert gathered(pipe, len(expected)) == expected
    wait_until(lambda: not writer.is_stalled)
    writer.put("after\n")
    assert gathered(pipe, 6) == "after\n"


def test_the_end_of_a_process_writes_what_waits(pipe: Pipe, writer: NonBlockingStream) -> None:
    for _ in range(100):
        writer.put(LINE)
    stopping = threading.Thread(target=writer.stop)
    stopping.start()
    assert gathered(pipe, 100 * len(LINE)) == LINE * 100
    stopping.join(WAIT_SECONDS)
    assert not stopping.is_alive()
    writer.put("later\n")
    assert pipe.read() == "later\n"


def test_the_end_of_a_process_does_not_wait_for_ever(
    pipe: Pipe, writer: NonBlockingStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STOP_SECONDS", 0.1)
    for _ in range(100):
        writer.put(LINE)
    began = time.monotonic()
    writer.stop()
    assert time.monotonic() - began < WAIT_SECONDS
    assert pipe.read()


def test_a_thread_exists_only_while_lines_wait(pipe: Pipe, writer: NonBlockingStream) -> None:
    """The master of gunicorn forks, so it should have no threads."""
    before = set(threading.enumerate())

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread not in before]

    writer.put("taken at once\n")
    assert threads() == []
    for _ in range(100):
        writer.put(LINE)
    assert threads() == ["log writer"]
    gathered(pipe, 14 + 100 * len(LINE))
    wait_until(lambda: threads() == [])
    writer.put("next\n")
    assert pipe.read() == "next\n"


def test_a_file_that_is_full_is_told_and_no_line_is_torn(tmp_path: Path) -> None:
    """The limit of this process's files stands for a disk: half a line fits."""
    path = tmp_path / "log"

    def fill() -> None:
        stream = path.open("a")
        made = NonBlockingStream(lambda: stream)
        made.begin()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, hard))
        for number in range(5):
            made.put(f"{number} {LINE}")
        wait_until(lambda: made.fault is not None)
        assert made.fault == "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        made.stop()
        os._exit(0)

    filling = fork.Process(target=fill)
    filling.start()
    filling.join(WAIT_SECONDS)
    assert filling.exitcode == 0
    assert path.read_text() == "".join(f"{number} {LINE}" for number in range(5))


def test_a_line_that_a_dead_process_has_left_half_way_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"half')
    with path.open("a") as stream:
        made = NonBlockingStream(lambda: stream)
        made.begin()
        made.put("whole\n")
    assert path.read_text() == '{"half\nwhole\n'


def test_a_socket_is_written_too() -> None:
    """As a service manager gives it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("w") as stream:
        made = NonBlockingStream(lambda: stream)
        made.begin()
        for _ in range(20000):
            made.put(LINE)
        theirs.settimeout(WAIT_SECONDS)
        received = 0
        while received < 20000 * len(LINE):
            received += len(theirs.recv(65536))
        made.stop()


def test_where_the_pipe_cannot_be_opened_anew_nobody_waits_either(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's standard output can belong to another user."""
    opened = os.open

    def refuse(path: str, *options: Any) -> int:
        if str(path).startswith("/proc/"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *options)

    monkeypatch.setattr(os, "open", refuse)
    made = NonBlockingStream(lambda: pipe.stream)
    made.begin()
    monkeypatch.undo()
    sent = "".join(f"{number:05} {LINE * 50}" for number in range(50))
    for line in sent.splitlines(keepends=True):
        made.put(line)
    assert gathered(pipe, len(sent)) == sent
    made.stop()


def test_long_lines_of_several_processes_are_not_mixed(pipe: Pipe) -> None:
    """Longer than what the kernel writes in one piece, through a pipe that holds less."""
    first = NonBlockingStream(lambda: pipe.stream)
    first.begin()

    def say(letter: str) -> None:
        first.begin()
        for _ in range(20):
            first.put(letter * 9999 + "\n")
        first.stop()
        os._exit(0)

    speakers = [fork.Process(target=say, args=(letter,)) for letter in "abc"]
    for speaker in speakers:
        speaker.start()
    found = gathered(pipe, 3 * 20 * 10000)
    for speaker in speakers:
        speaker.join(WAIT_SECONDS)
        assert speaker.exitcode == 0
    assert sorted(found.splitlines()) == sorted(letter * 9999 for letter in "abc" for _ in range(20))


def test_a_fork_writes_nothing_of_its_parents(pipe: Pipe) -> None:
    parent = NonBlockingStream(lambda: pipe.stream)
    parent.begin()
    for _ in range(100):
        parent.put(LINE)

    def say() -> None:
        parent.begin()
        parent.put("child\n")
        parent.stop()
        os._exit(0)

    child = fork.Process(target=say)
    child.start()
    found = ""
    while child.is_alive():
        found += pipe.read()
        time.sleep(0.01)
    while not found.endswith("parent\n"):
        parent.put("parent\n")
        found += pipe.read()
    assert found.count(LINE) == 100
    assert found.count("child\n") == 1


def test_an_unexpected_fault_does_not_keep_later_lines_in(
    pipe: Pipe, writer: NonBlockingStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_sink: object, _data: memoryview) -> int:
        raise MemoryError

    monkeypatch.setattr(streams.Sink, "write", fail)
    with pytest.raises(MemoryError):
        writer.put("first\n")
    monkeypatch.undo()
    writer.put("second\n")
    assert gathered(pipe, 13) == "first\nsecond\n"


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[tuple[Path, NonBlockingStream]]:
    """A log file, and who writes it."""
    path = tmp_path / "logs" / "audit.log"
    path.parent.mkdir()
    with path.open("a") as stream:
        path.chmod(0o640)
        made = NonBlockingStream(lambda: stream)
        made.begin()
        yield path, made
        made.stop()


def test_a_file_that_was_moved_away_is_followed_by_a_new_one_of_its_mode(
    log_file: tuple[Path, NonBlockingStream],
) -> None:
    path, writer = log_file
    old = path.with_suffix(".1")
    writer.put("before\n")
    path.rename(old)
    writer.put("between\n")
    assert not path.exists()
    # As the service runs.
    umask = os.umask(0o077)
    try:
        writer.follow()
    finally:
        os.umask(umask)
    writer.put("after\n")
    assert (old.read_text(), path.read_text()) == ("before\nbetween\n", "after\n")
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another group")
def test_the_new_file_has_the_group_of_the_old_one(log_file: tuple[Path, NonBlockingStream]) -> None:
    path, writer = log_file
    os.chown(path, -1, 4)
    path.rename(path.with_suffix(".1"))
    writer.follow()
    assert path.stat().st_gid == 4
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_somebody_else_has_made_there_is_appended_to(log_file: tuple[Path, NonBlockingStream]) -> None:
    path, writer = log_file
    path.rename(path.with_suffix(".1"))
    path.write_text("made by the rotation\n")
    writer.follow()
    writer.put("after\n")
    assert path.read_text() == "made by the rotation\nafter\n"


@pytest.mark.parametrize("there", ["a link", "a pipe", "a folder", "nothing, and no folder"])
def test_what_is_no_file_is_not_followed(log_file: tuple[Path, NonBlockingStream], there: str) -> None:
    path, writer = log_file
    elsewhere = path.parent.with_name("elsewhere")
    path.parent.rename(elsewhere)
    if there != "nothing, and no folder":
        path.parent.mkdir()
    if there == "a link":
        path.symlink_to(path.parent / "secret")
    elif there == "a pipe":
        os.mkfifo(path)
    elif there == "a folder":
        path.mkdir()
    writer.follow()
    writer.put("after\n")
    assert (elsewhere / "audit.log").read_text() == "after\n"
    assert not (path.parent / "secret").exists()


def test_a_write_follows_a_moved_file_once_a_second(log_file: tuple[Path, NonBlockingStream]) -> None:
    path, writer = log_file
    old = path.with_suffix(".1")
    with time_machine.travel(0, tick=False) as clock, patch.object(streams.time, "monotonic", time.time):
        writer.follow()
        path.rename(old)
        clock.shift(streams.FOLLOW_SECONDS)
        writer.put("between\n")
        clock.shift(0.1)
        writer.put("after\n")
    assert (old.read_text(), path.read_text()) == ("between\n", "after\n")


def test_a_heir_of_a_process_whose_file_was_moved_begins_in_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with path.open("a") as stream:
        writer = NonBlockingStream(lambda: stream)
        writer.begin()
        path.rename(tmp_path / "old.log")

        def serve() -> None:
            writer.begin()
            writer.put("born later\n")
            writer.stop()

        heir = fork.Process(target=serve)
        heir.start()
        heir.join(WAIT_SECONDS)
    assert path.read_text() == "born later\n"
