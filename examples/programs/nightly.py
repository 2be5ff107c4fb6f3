"""A job that puts items to an API by night, however long it takes, and goes on where it was when it is started again.

    nightly.py ITEMS DONE        ITEMS: one id per line; DONE: a file of this job, ids that are through

An item is put with PUT, so that putting one twice (killed between the answer and the note) changes nothing.
"""

import argparse
import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from prometheus_client import REGISTRY, Counter, Gauge, write_to_textfile
from requests import RequestException

from tokens import Account, NotSet, Session, TokenError, need

log = logging.getLogger("nightly")
ITEMS = Counter("nightly_items_total", "Items put, by what became of them.", ["outcome"])
LAST_SUCCESS = Gauge("nightly_last_success_timestamp_seconds", "When all items were through.")
EX_TEMPFAIL = 75


class Unreadable(Exception):
    """A list that cannot be read, and why."""


class Job:
    """Threads that take items from one list."""

    def __init__(self, session: Session, api_url: str, items: Iterator[str], done: int) -> None:
        self.session, self.api_url, self.items, self.done = session, api_url, items, done
        self.failed = 0
        self.fault: Exception | None = None
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def run(self, threads: int) -> None:
        """Until the items are over, or something stops it."""
        workers = [threading.Thread(target=self._work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _work(self) -> None:
        while not self.stopping.is_set():
            with self._lock:
                item = next(self.items, None)
            if item is None:
                return
            try:
                self._put(item)
            except (TokenError, OSError) as error:
                # No token, a full disk: the next item would fare no better.
                self.fault = error
                self.stopping.set()

    def _put(self, item: str) -> None:
        try:
            answer = self.session.put(f"{self.api_url}/{quote(item, safe='')}", json={"id": item})
            is_put, told = answer.status_code < 300, str(answer.status_code)
        except RequestException as error:
            is_put, told = False, type(error).__name__
        if is_put:
            os.write(self.done, f"{item}\n".encode())  # O_APPEND: whole, whichever thread
            ITEMS.labels("done").inc()
            return
        log.error("item=%r answered=%s", item, told)
        ITEMS.labels("failed").inc()
        with self._lock:
            self.failed += 1


def read_items(path: Path) -> dict[str, None]:
    """Its lines, in order, each once; the last may lack its line break. Raises Unreadable."""
    if not path.is_file():
        raise Unreadable(f"{path} is no file")
    try:
        return dict.fromkeys(line for line in path.read_text(encoding="utf-8").split("\n") if line)
    except UnicodeDecodeError:
        raise Unreadable(f"{path} is not in UTF-8") from None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None


def read_done(path: Path) -> dict[str, None]:
    """What is noted as through; a note that was not written whole is none."""
    return dict.fromkeys(path.read_text(encoding="utf-8").split("\n")[:-1])


def open_done(path: Path) -> int:
    """The file of what is through, ours alone, ending with a whole line."""
    done = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    fcntl.flock(done, fcntl.LOCK_EX | fcntl.LOCK_NB)
    size = os.fstat(done).st_size
    if size and os.pread(done, 1, size - 1) != b"\n":
        os.ftruncate(done, path.read_bytes().rfind(b"\n") + 1)
    return done


def write_metrics(path: Path) -> None:
    """Leave the counts; where that cannot be, the job was done all the same."""
    try:
        write_to_textfile(str(path), REGISTRY)
    except OSError as error:
        log.error("%s", error)  # noqa: TRY400 - its message says it all


def main() -> int:
    """0: all through; 1: some failed, or no token; 75: stopped, or another is at work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", type=Path)
    parser.add_argument("done", type=Path)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--metrics", type=Path, metavar="FILE.prom", help="for node_exporter's textfile collector")
    arguments = parser.parse_args()
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(message)s")
    try:
        account, api_url, items = Account.from_environment(), need("API_URL"), read_items(arguments.items)
    except (NotSet, Unreadable) as error:
        parser.error(str(error))
    try:
        done = open_done(arguments.done)
    except BlockingIOError:
        log.warning("another run is at work")
        return EX_TEMPFAIL

    through = read_done(arguments.done)
    rest = [item for item in items if item not in through]
    log.info("items=%d done_before=%d", len(rest), len(through))
    job = Job(Session(account, connections=arguments.threads), api_url, iter(rest), done)

    def stop(_number: int, _frame: FrameType | None) -> None:
        job.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    job.run(arguments.threads)

    if job.fault:
        log.error("%s", job.fault)
    through = read_done(arguments.done)
    left = sum(item not in through for item in rest)
    if left == 0:
        LAST_SUCCESS.set_to_current_time()
    if arguments.metrics:
        write_metrics(arguments.metrics)
    log.info("left=%d failed=%d", left, job.failed)
    if left and job.stopping.is_set() and not (job.fault or job.failed):
        return EX_TEMPFAIL
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
