"""gunicorn's settings, each with its reason. What the application does is set in the TOML files."""

import os
import pathlib
import select
import sys
import tempfile
from typing import Any

import gunicorn

# If the old master was started with `python -m gunicorn`, the new master of USR2 has gunicorn's own folder first in
# its path, where a package `http` hides the standard library's.
sys.path[:] = [entry for entry in sys.path if pathlib.Path(entry) != pathlib.Path(gunicorn.__file__).parent]

_host = os.environ.get("HOST") or "127.0.0.1"
_port = os.environ.get("PORT") or "8080"


def _can_create_files(folder: str) -> bool:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


_shared_memory = "/dev/shm"  # noqa: S108

# The checkout, so that gunicorn may be started in any folder.
chdir = str(pathlib.Path(__file__).resolve().parent.parent)
# The worker class is imported before gunicorn changes to that folder.
pythonpath = chdir

# Local by default: opening it to a network is a decision. An IPv6 address is put into brackets.
bind = [f"[{_host}]:{_port}" if ":" in _host else f"{_host}:{_port}"]

# A Unix socket is for its owner and group: the proxy's user must be in that group.
umask = 0o007

# Signing is all CPU and releases the GIL: one process for each core that this process may use.
_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
workers = int(os.environ.get("WEB_CONCURRENCY") or _cores or 1)
# buffered_worker/README.md says why. It needs Linux; elsewhere, on a laptop, a stock worker will do.
worker_class = "app.operations.worker.TokenhouseWorker" if hasattr(select, "epoll") else "gthread"
# All but one thread may block on the database; the last serves health checks and the JWKS whatever the database does.
threads = 8
# Per worker. A process may open 1024 files by default, and the database and the logs need some.
worker_connections = 900

# Load balancers keep idle connections for 60 s. They must close first, or a request meets a closed connection.
keepalive = 75
# A request that takes longer hangs: its worker is replaced.
timeout = 30
# Requests in flight at SIGTERM may take this long; a container is usually killed after 30 s.
graceful_timeout = 25
# The heartbeat is a file's modification time. On a disk it can block, and the worker would be killed for a slow disk.
worker_tmp_dir = _shared_memory if _can_create_files(_shared_memory) else None

# An assertion (RFC 7523) in a header, or a DPoP proof, takes 2 to 3 KiB. Nothing that we serve has longer lines.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
# gunicorn would use a faster parser if it is installed, with other answers.
http_parser = "python"
# No header may change the path: gunicorn would take SCRIPT_NAME and PATH_INFO from any local caller.
forwarder_headers = ""

# Each worker loads the application itself: no key or connection is shared across a fork.
preload_app = False
# gunicorn would open a socket in the home folder, and whoever can write there could control the server.
control_socket_disable = True
# The audit log says more, and contains no secret.
accesslog = None
logger_class = "app.operations.gunicorn_hooks.GunicornLogger"
errorlog = "-"


# What the hooks do is in app/operations/gunicorn_hooks.py. They import it late: gunicorn must know the folder first.


def on_starting(server: Any) -> None:
    """Stop with one line, before any worker exists, if the settings or the keys are wrong."""
    from app import create_app  # noqa: PLC0415
    from app.operations import gunicorn_hooks  # noqa: PLC0415

    if server.cfg.is_ssl and worker_class != "gthread":
        sys.exit("tokenhouse: certfile and keyfile: TLS ends in a proxy before Tokenhouse, see README.md")
    if worker_class == "gthread":
        server.log.warning("Without epoll a stock worker serves, which slow callers can block: not for production")
    gunicorn_hooks.on_starting(server, create_app)


def post_fork(server: Any, worker: Any) -> None:
    """Keep the master from ending with a worker that cannot start."""
    from app.operations import gunicorn_hooks  # noqa: PLC0415

    gunicorn_hooks.post_fork(server, worker)


def post_worker_init(worker: Any) -> None:
    """Start what a worker does beside its requests."""
    from app.operations import gunicorn_hooks  # noqa: PLC0415

    gunicorn_hooks.post_worker_init(worker)


def pre_exec(_server: Any) -> None:
    """Give the new master of USR2 the current log files, not those that were rotated away."""
    from app.audit.streams import follow_files  # noqa: PLC0415

    follow_files()


def child_exit(server: Any, worker: Any) -> None:
    """Delay the successor of a worker that has never served."""
    from app.operations import gunicorn_hooks  # noqa: PLC0415

    gunicorn_hooks.child_exit(server, worker)


def on_exit(server: Any) -> None:
    """Remove the folder of the metrics."""
    from app.operations import gunicorn_hooks  # noqa: PLC0415

    gunicorn_hooks.on_exit(server)
