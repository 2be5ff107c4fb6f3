"""gunicorn's hooks: what the master checks before workers start, and what workers inherit from it.

A running server never ends because of a file. Settings are read and checked at the start and at SIGHUP, in the
master alone, and later workers get the last good ones. The last good key ring is in shared memory
(``shared_state``). Only a first start refuses.
"""

import contextlib
import gc
import logging
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.glogging import Logger
from sqlalchemy.engine import make_url

from app.audit.log import send_to_standard_error
from app.audit.streams import begin_non_blocking
from app.config.loader import CONFIG_NAME, load_settings
from app.config.settings import Settings
from app.errors import StartError, Unreachable
from app.keyring.validation import find_problems
from app.observability import otel_variables
from app.observability.instrumentation import Instrumentation
from app.operations.background_jobs import PeriodicTask, Scheduler
from app.operations.doctor import examine_start, find_lost_secrets, is_production
from app.operations.findings import NotResponding, Severity
from app.services import EXTENSION, Services
from app.shared_state import share, shared_state

APP_LOAD_ERROR = 4
"""A worker's exit status that says that starting it again would not help: the master ends too."""

RETRY_SECONDS = 1.0
"""How long the successor of a worker that has never served waits before it starts."""

HELD_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that a worker does not get before it can handle them."""

CreateApp = Callable[[Settings], Flask]
"""``app.create_app``, which stands above this package."""

_checked: Settings | None = None
_not_before = 0.0

log = logging.getLogger(__name__)


class WrongSettings(StartError):
    """The settings are valid, but a server must not run with them."""


class RingFault(StartError):
    """The settings are good, and the key ring is not."""


class GunicornLogger(Logger):
    """Formats gunicorn's own lines as all others, even before the settings are known."""

    def setup(self, cfg: Any) -> None:
        """Replace the handlers that gunicorn makes, at its start and at each reload."""
        super().setup(cfg)
        settings = _checked
        development = os.environ.get(CONFIG_NAME) == "development"
        log_format = os.environ.get("TOKENHOUSE_LOG_FORMAT") or ("console" if development else "json")
        if settings:
            send_to_standard_error(settings.log_format, settings.log_level)
        else:
            level = "debug" if cfg.loglevel == "debug" else "info"
            send_to_standard_error(log_format if log_format in {"console", "json"} else "json", level)


def on_starting(server: Any, create_app: CreateApp) -> None:
    """Check everything before any worker exists; at SIGHUP keep the workers if new ones could not start.

    Ends the process with one line that says what is wrong.
    """
    share()
    try:
        _require_streams()
        _check(create_app, server.cfg.workers)
    except StartError as error:
        sys.stderr.write(f"tokenhouse: {error}\n")
        sys.exit(APP_LOAD_ERROR)
    _log_identity()
    _freeze_memory()
    begin_non_blocking()
    reload: Callable[[], None] = server.handle_hup
    server.handle_hup = lambda: _reload_if_valid(server, reload, create_app)
    spawn: Callable[[], int] = server.spawn_worker
    server.spawn_worker = lambda: _spawn_with_signals_held(spawn)


def child_exit(_server: Any, worker: Any) -> None:
    """In the master, when a worker has ended: delay the next ones if this one has never served."""
    global _not_before  # noqa: PLW0603 - One for a process: what it leaves to those that it forks.
    if (shared := shared_state()) and not shared.has_served(worker.pid):
        _not_before = time.monotonic() + RETRY_SECONDS


def post_fork(server: Any, _worker: Any) -> None:
    """In a new worker: once any worker has started, the master replaces one that cannot start instead of ending."""
    # Here, and not at its predecessor's end, which may have been a signal. The master waits for nobody.
    time.sleep(max(0.0, _not_before - time.monotonic()))
    if (shared := shared_state()) and shared.has_started_worker:
        server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = 1


def post_worker_init(worker: Any) -> None:
    """In a worker that has started: start its periodic tasks, metrics and traces, whether or not a request comes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
    extensions = getattr(worker.wsgi, "extensions", {})
    if scheduler := extensions.get("scheduler"):
        _start_metrics(scheduler, extensions[EXTENSION], extensions["instrumentation"])
        _start_tracing(worker.wsgi, extensions[EXTENSION].settings, extensions["instrumentation"])
        scheduler.start()
    begin_non_blocking()
    if shared := shared_state():
        shared.begin_serving(os.getpid())


def on_exit(_server: Any) -> None:
    """In the master, at its end: remove the folder of the metrics."""
    if metrics := sys.modules.get("app.observability.metrics"):
        metrics.remove()


def create_served_app(create_app: CreateApp) -> Flask:
    """Create the application of a worker, with the settings that the master has checked.

    Ends the process with one line that says what is wrong.
    """
    try:
        app = create_app(_checked or load_settings())
        check_start(app)
    except StartError as error:
        sys.stderr.write(f"tokenhouse: {error}\n")
        shared = shared_state()
        sys.exit(1 if shared and shared.has_started_worker else APP_LOAD_ERROR)
    return app


def check_start(app: Flask) -> None:
    """Refuse to serve without a key that may sign, or with trust anchors that cannot be read.

    What else is wrong with the key ring is logged.

    :raises StartError: one line that says what is wrong.
    """
    services: Services = app.extensions[EXTENSION]
    active = services.keys.active
    active.refresh()
    active.signing_key()
    services.oauth.client_auth.trust_anchors.load()
    if active.fault is None:
        active.record_max_age()
    for fault in find_problems(active(), active.now(), services.keys.manager.rules):
        log.error("the key ring is not safe: %s", fault)


def _start_metrics(scheduler: Scheduler, services: Services, instrumentation: Instrumentation) -> None:
    # Imported only if metrics are on. The master has imported it already, for all workers.
    if services.settings.metrics_address is None:
        return
    from app.observability import metrics  # noqa: PLC0415

    if listener := metrics.start(services, instrumentation):
        scheduler.add(PeriodicTask("Serving metrics", metrics.POLL_SECONDS, listener.poll, at_start=True))


def _start_tracing(app: Flask, settings: Settings, instrumentation: Instrumentation) -> None:
    if _is_traced(settings):
        from app.observability import tracing  # noqa: PLC0415 - As above.

        tracing.start(app, settings, instrumentation)


def _is_traced(settings: Settings) -> bool:
    """Return whether requests are to be traced, and can be."""
    if not otel_variables.is_enabled(settings.traces, os.environ):
        return False
    return settings.traces or not any(otel_variables.find_faults(os.environ))


def _spawn_with_signals_held(spawn: Callable[[], int]) -> int:
    """Fork a worker that misses no signal.

    Until it has its own handlers it has the master's, which only queue a signal for the master: a SIGTERM at that
    moment would be lost, and shutting down would take ``graceful_timeout``.
    """
    master = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        return spawn()
    finally:
        if os.getpid() == master:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def _freeze_memory() -> None:
    """Keep memory shared with the workers: a garbage collection writes to every object, and so copies every page."""
    gc.collect()
    gc.freeze()


def _log_identity() -> None:
    """Log what this server is, so that nobody runs development, or another's database, without knowing."""
    assert _checked  # noqa: S101 - It has been, just before.
    url = make_url(_checked.database_url.get_secret_value())
    # Host, port and name: other parts may hold secrets.
    where = {name: url.query[name] for name in ("host", "port") if name in url.query}
    database = url.set(username=None, password=None, query=where).render_as_string()
    log.info(
        "Tokenhouse is %s, with configuration %s, key ring %s, database %s",
        _checked.issuer,
        _checked.config,
        _checked.keyring,
        database,
    )


def _require_streams() -> None:
    if sys.stdout is None:
        raise StartError("standard output is closed, and the audit log is written there: `>/dev/null` throws it away")
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - As long as the process.


def _check(create_app: CreateApp, workers: int) -> None:
    """Read settings and ring again, and keep the settings for workers.

    :param workers: how many there will be.

    :raises StartError: what is wrong; the settings that were kept stay.
    """
    global _checked  # noqa: PLW0603 - One for a process: what it leaves to those that it forks.
    settings = load_settings()
    _import_tracing(settings)
    app = create_app(settings)
    with app.app_context():
        services: Services = app.extensions[EXTENSION]
        try:
            _require_ring(services)
            check_start(app)
            _run_doctor(services)
        except WrongSettings:
            raise
        except StartError as error:
            raise RingFault(str(error)) from None
        finally:
            # No connection may be shared with the workers that are forked from here.
            app.extensions["sqlalchemy"].session.remove()
            app.extensions["sqlalchemy"].engine.dispose()
    if settings.metrics_address is not None:
        from app.observability import metrics  # noqa: PLC0415 - As in _start_metrics.

        metrics.prepare(workers)
    _checked = settings


def _require_ring(services: Services) -> None:
    """Check that the ring can be read now. The last good one would do for a worker, but would hide a fault.

    :raises StartError: it cannot be read. While the database is away, a snapshot of the ring is accepted instead.
    """
    try:
        services.keys.manager.backend.read()
    except Unreachable:
        if not services.keys.active.restore():
            raise


def _import_tracing(settings: Settings) -> None:
    """Import tracing once for all workers.

    :raises StartError: our setting requires traces, and they are impossible.
    """
    if not _is_traced(settings):
        return
    if settings.traces:
        otel_variables.check(os.environ)
    from app.observability import tracing  # noqa: F401, PLC0415 - As in _start_metrics.


def _run_doctor(services: Services) -> None:
    """Run the doctor's checks of a start and log the findings; errors stop a start in production.

    :raises WrongSettings: there are errors.
    """
    found = [one for one in examine_start(services) if one.severity is not Severity.OK]
    errors = [one for one in found if one.severity is Severity.ERROR]
    if errors and is_production(services.settings):
        raise WrongSettings("\n".join(f"{one.check}: {one.what}. Fix: {one.how}" for one in errors))
    if not any(isinstance(one, NotResponding) for one in found):
        for lost in find_lost_secrets(services):
            # This is no reason to refuse everybody.
            log.error("%s", lost.what)
    for one in found:
        log.warning("%s: %s. Why: %s. Fix: %s", one.check, one.what, one.why, one.how)


def _reload_if_valid(server: Any, reload: Callable[[], None], create_app: CreateApp) -> None:
    master = os.getpid()
    shared = shared_state()
    assert shared  # noqa: S101 - The master has made it.
    try:
        # Check gunicorn's file first: settings that have passed are kept for later workers.
        _check_gunicorns_settings(server)
        _check(create_app, server.cfg.workers)
        _freeze_memory()
        shared.reload_failed = False
        reload()
    except BaseException as error:
        if os.getpid() != master:
            # This is a worker that was forked inside ``reload``, and ends.
            raise
        # The ring is polled and reports its own faults; settings are not.
        shared.reload_failed = shared.reload_failed or not isinstance(error, RingFault)
        message = str(error) if isinstance(error, StartError) else f"{type(error).__name__}: {error}"
        server.log.error("SIGHUP changed nothing: fix this, then send it again: %s", message)  # noqa: TRY400


def _check_gunicorns_settings(server: Any) -> None:
    """Run gunicorn's configuration file: a fault in it would end gunicorn."""
    path = str(server.cfg.config).removeprefix("file:")
    if path.endswith(".py"):
        with contextlib.suppress(FileNotFoundError):
            runpy.run_path(path)
