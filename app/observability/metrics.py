"""Metrics for Prometheus, on a separate listener and never on the public port.

Each worker counts in memory-mapped files in a folder of its server, and a scrape adds them up. A file belongs to a
slot, not to a process: the successor of a worker, after a crash or a reload, takes a free slot and continues its
counts. One worker listens; when it ends another does.

Labels of counters have fixed sets of values: no client, no address, nothing that a caller wrote.
"""

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from app.audit.events import (
    Event,
    KeyRingRejected,
    RequestRefused,
    TokenIntrospected,
    TokenIssued,
    TokenRefused,
    TokenRevoked,
)
from app.errors import StartError
from app.observability.gauges import Gauges
from app.observability.instrumentation import PARTS, Instrumentation
from app.observability.metrics_server import serve
from app.reasons import RefusalReason
from app.services import Services
from app.shared_state import try_lock

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often a worker checks whether it should listen."""

MEASURE_SECONDS = 5.0
"""How often the listening worker updates the gauges."""

BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""Seconds: a token takes some 0.4 ms, a database that does not respond 4 s."""

NONE = "none"
"""The label of a method or grant that the request does not name."""

RESERVED_BYTES = {"counter": 256 * 1024, "histogram": 64 * 1024}
"""Size of a slot's files, by the kind of metric. Labels have fixed sets of values, so no file grows beyond it."""

_FOLDER = "tokenhouse-metrics-"
_SERVER = "server.lock"
_DIRECTORY_OF_FILES = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that prometheus-client reads. Set in workers only, so that no new master inherits it at USR2."""
_ABANDONED_SECONDS = 60
_MOST_PLACES = 1024


class ServersFolder:
    """The folder in which the workers of one master count. The master creates it and removes it when it ends.

    The next master that starts removes the folder of a master that was killed.
    """

    def __init__(self, parent: Path) -> None:
        _remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=parent))
        self._master = os.getpid()
        # Held for as long as the master lives. Its workers inherit it, and end when the master does.
        self._held = try_lock(self.path / _SERVER)
        self._place: int | None = None
        self._lead: int | None = None

    def remove(self) -> None:
        """Remove the folder, in the process that created it."""
        if os.getpid() == self._master:
            shutil.rmtree(self.path, ignore_errors=True)
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def take_place(self) -> str:
        """Take a slot that no other worker has, until this process ends.

        :raises OSError: the folder is gone, or has no room.
        """
        for number in range(_MOST_PLACES):
            self._place = try_lock(self.path / f"place-{number}.lock")
            if self._place is not None:
                for kind, size in RESERVED_BYTES.items():
                    # The file is mapped: without the room for it the first write would be a SIGBUS.
                    _reserve(self.path / f"{kind}_{number}.db", size)
                return str(number)
        raise OSError(f"{_MOST_PLACES} workers count already")

    def lead(self) -> bool:
        """Return whether this process is the one that listens; it is until it ends."""
        if self._lead is None:
            self._lead = try_lock(self.path / "leader.lock")
        return self._lead is not None


class PrometheusRecorder:
    """Counts in the files of a slot; a :class:`app.observability.instrumentation.MetricsRecorder`."""

    def __init__(self, folder: Path, place: str) -> None:
        os.environ[_DIRECTORY_OF_FILES] = str(folder)
        values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
        # A registry that is never scraped: a scrape reads the sum of all files.
        own = CollectorRegistry()
        self._issued = Counter(
            "tokenhouse_tokens_issued", "Access tokens issued.", ["auth_method", "grant_type"], registry=own
        )
        self._from_memory = Counter(
            "tokenhouse_tokens_from_memory",
            "Access tokens issued to known clients while the database was away.",
            registry=own,
        )
        self._refused = Counter(
            "tokenhouse_token_requests_refused",
            "Token requests refused.",
            ["auth_method", "grant_type", "error", "reason"],
            registry=own,
        )
        self._others_refused = Counter(
            "tokenhouse_requests_refused",
            "Requests refused at other endpoints than the token endpoint.",
            ["endpoint", "error", "reason"],
            registry=own,
        )
        self._introspected = Counter(
            "tokenhouse_introspections", "Introspection requests answered.", ["active"], registry=own
        )
        self._revoked = Counter("tokenhouse_revocations", "Revocation requests answered.", ["was_live"], registry=own)
        self._rejected = Counter(
            "tokenhouse_key_ring_rejections", "Changed key rings that were rejected.", registry=own
        )
        durations = Histogram(
            "tokenhouse_token_request_duration_seconds",
            "Time from a complete token request to its event.",
            ["outcome"],
            buckets=BUCKETS,
            registry=own,
        )
        parts = Histogram(
            "tokenhouse_token_request_part_duration_seconds",
            "Time of the parts of a token request: client authentication, signature, audit line.",
            ["part"],
            buckets=BUCKETS,
            registry=own,
        )
        self._durations = {outcome: durations.labels(outcome).observe for outcome in ("issued", "refused")}
        self._parts = {part: parts.labels(part).observe for part in PARTS}
        self._known: dict[tuple[str, ...], Callable[[], None]] = {}
        self._by_kind: dict[type[Any], Callable[[Any], None]] = {
            TokenIssued: self._count_issued,
            TokenRefused: self._count_refused,
            RequestRefused: self._count_other,
            TokenIntrospected: lambda event: self._add(self._introspected, _word(event.active)),
            TokenRevoked: lambda event: self._add(self._revoked, _word(event.was_live)),
            KeyRingRejected: lambda _: self._rejected.inc(),
        }

    def count(self, event: Event) -> None:
        """Count ``event``, if its kind is counted."""
        if count := self._by_kind.get(type(event)):
            count(event)

    def observe(self, part: str, seconds: float) -> None:
        """Record the duration of a part of a token request."""
        self._parts[part](seconds)

    def _count_issued(self, event: TokenIssued) -> None:
        self._add(self._issued, event.auth_method, event.grant_type)
        if event.from_memory:
            self._from_memory.inc()
        self._durations["issued"](event.request.duration_ms / 1000)

    def _count_refused(self, event: TokenRefused) -> None:
        method, grant = event.auth_method or NONE, event.grant_type or NONE
        self._add(self._refused, method, grant, event.error, closed(event.reason))
        self._durations["refused"](event.request.duration_ms / 1000)

    def _count_other(self, event: RequestRefused) -> None:
        self._add(self._others_refused, event.endpoint, event.error, closed(event.reason))

    def _add(self, counter: Counter, *labels: str) -> None:
        key = (counter._name, *labels)  # noqa: SLF001 - Only to tell them apart.
        add = self._known.get(key)
        if add is None:
            add = self._known[key] = counter.labels(*labels).inc
        add()


_OPEN_ENDED = tuple(reason for reason in RefusalReason if reason.endswith("_"))


def closed(reason: str) -> str:
    """Return ``reason`` as a label: one for all classes of exceptions, and for the silence before."""
    return next((start.rstrip("_") for start in _OPEN_ENDED if reason.startswith(start)), reason)


class Listener:
    """Answers Prometheus, in one of the workers.

    :param address: host and port.
    """

    def __init__(self, folder: ServersFolder, address: tuple[str, int], services: Services) -> None:
        self._folder = folder
        self._address = address
        self._is_serving = False
        self._told = ""
        self._facts: Sequence[Metric] = ()
        self._next_measure = 0.0
        self._gauges = Gauges(services)

    def poll(self) -> None:
        """Update the gauges and listen, unless another worker does."""
        if not self._folder.lead():
            return
        if time.monotonic() >= self._next_measure:
            self._next_measure = time.monotonic() + MEASURE_SECONDS
            self._facts = list(self._gauges.measure())
        if not self._is_serving:
            self._listen()

    def collect(self) -> Sequence[Metric]:
        """Return the gauges of the last update: a scrape queries nothing."""
        return self._facts

    def _listen(self) -> None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._folder.path))  # type: ignore[no-untyped-call]
        registry.register(self)
        host, port = self._address
        try:
            serve(host, port, registry)
        except OSError as error:
            message = f"the metrics listener cannot listen at {host}:{port}: {error.strerror or error}"
            if message != self._told:
                log.warning("%s (TOKENHOUSE_METRICS_ADDRESS)", message)
            self._told = message
            return
        self._is_serving, self._told = True, ""


_folder: ServersFolder | None = None


def prepare(workers: int) -> None:
    """Create the folder, once, in the master before any worker exists.

    :raises StartError: it cannot be created, or has no room for so many workers.
    """
    global _folder  # noqa: PLW0603 - One for a process: what it leaves to those that it forks.
    if _folder is not None:
        return
    parent, size = _in_memory(), workers * sum(RESERVED_BYTES.values())
    try:
        _folder = ServersFolder(parent)
        probe = _folder.path / "probe"
        try:
            _reserve(probe, size)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        remove()
        _folder = None
        raise StartError(
            f"metrics need {size // 1024} KiB in {parent}: {error.strerror}; make room there, or set "
            "TOKENHOUSE_METRICS_ADDRESS= (empty) to do without metrics"
        ) from None


def remove() -> None:
    """Remove the folder, in the master at its end."""
    if _folder:
        _folder.remove()


def start(services: Services, instrumentation: Instrumentation) -> Listener | None:
    """Count from now on, in a worker; return the listener, or ``None`` without metrics."""
    address = services.settings.metrics_address
    if address is None or _folder is None:
        return None
    try:
        instrumentation.record_with(PrometheusRecorder(_folder.path, _folder.take_place()))
    except OSError as error:
        log.warning("this worker records no metrics: %s", error.strerror or error)
        return None
    return Listener(_folder, address, services)


def _reserve(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _in_memory() -> Path:
    """Return a folder in memory, if there is one: a write to a disk can block."""
    shared = Path("/dev/shm")  # noqa: S108
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_FOLDER}*"):
        with suppress(OSError):
            found = folder.lstat()
            # Everybody may write here: another user's folder, or a link to one, is not ours to touch.
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            # A folder that is being created has no lock yet.
            is_old = time.time() - found.st_mtime > _ABANDONED_SECONDS
            if is_ours and is_old and (held := try_lock(folder / _SERVER)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _word(value: bool) -> str:  # noqa: FBT001 - It is what is named.
    return "true" if value else "false"
