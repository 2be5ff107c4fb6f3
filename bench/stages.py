"""gunicorn's configuration of Tokenhouse, with a clock around each stage of a request: for ``budget.py`` alone.

A stage's own CPU time is what its thread used in it, without the stages that it calls. When a worker ends it leaves its
sums in the folder that BENCH_STAGES names.
"""

import functools
import importlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
_VALUES = run_path(str(PROJECT / "config" / "gunicorn.py"))
globals().update({name: value for name, value in _VALUES.items() if not name.startswith("_")})
chdir = pythonpath = str(PROJECT)

STAGES = (
    ("worker: the rest", "buffered_worker.worker:BufferedWorker._handle"),
    ("worker: receive", "buffered_worker.connection:Connection.receive"),
    ("worker: find and parse a head", "buffered_worker.request_parser:RequestBuffer.take"),
    ("worker: answer", "buffered_worker.response:Response.start_response"),
    ("worker: answer", "buffered_worker.response:Response.to_bytes"),
    ("worker: send", "buffered_worker.connection:Connection.flush"),
    ("worker: re-arm", "buffered_worker.worker:BufferedWorker._park"),
    ("Flask outside the view", "flask:Flask.__call__"),
    ("request id and address", "app.http.application:Request.begin"),
    ("headers of every answer", "app.http.application:Request.finish"),
    ("token server: the rest", "app.oauth.authorization_server:AuthorizationServer.create_token_response"),
    ("form and request object", "app.oauth.authorization_server:AuthorizationServer.create_oauth2_request"),
    ("grant and policy", "app.oauth.grants.client_credentials:ClientCredentialsGrant.validate_token_request"),
    ("grant and policy", "app.oauth.grants.client_credentials:ClientCredentialsGrant.create_token_response"),
    ("authenticate: the rest", "app.oauth.authorization_server:AuthorizationServer.authenticate_client"),
    ("authenticate: digest", "app.clients.secret_digests:SecretDigester.digest_with_all"),
    ("authenticate: SQL", "app.database.prepared_query:PreparedQuery.execute"),
    ("authenticate: record the use", "app.clients.last_used:LastUsedTracker.record"),
    ("claims and JOSE", "app.tokens.issuer:AccessTokenIssuer.__call__"),
    ("signature", "app.keyring.model:SigningKey.sign"),
    ("events", "app.oauth.authorization_server:AuthorizationServer.save_token"),
    ("events", "app.keyring.usage_counters:KeyUsageCounters.__call__"),
    ("audit line: make", "app.audit.log:AuditLog.__call__"),
    ("audit line: write", "buffered_worker.stream:NonBlockingStream.put"),
    ("response and JSON", "app.oauth.authorization_server:AuthorizationServer.handle_response"),
)

_mine = threading.local()
_all: list[dict[str, list[float]]] = []


def _sums() -> tuple[list[list[float]], dict[str, list[float]]]:
    try:
        return _mine.stack, _mine.sums
    except AttributeError:
        _mine.stack, _mine.sums = [], defaultdict(lambda: [0, 0.0])
        _all.append(_mine.sums)
        return _mine.stack, _mine.sums


def _clocked(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    clock = time.thread_time_ns

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        stack, sums = _sums()
        inner = [0.0]
        stack.append(inner)
        began = clock()
        try:
            return function(*arguments, **named)
        finally:
            took = clock() - began
            stack.pop()
            if stack:
                stack[-1][0] += took
            sums[stage][0] += 1
            sums[stage][1] += took - inner[0]

    return run


def _clocked_attribute(stage: str, holder: Any, name: str) -> Any:
    found = getattr(holder, name)
    if not isinstance(found, functools.cached_property):
        return _clocked(stage, found)
    # Its value is the function.
    clocked = functools.cached_property(lambda owner: _clocked(stage, found.func(owner)))
    clocked.__set_name__(holder, name)
    return clocked


def post_fork(server: Any, worker: Any) -> None:
    """Put the clocks around, before the application is made."""
    for stage, target in STAGES:
        module_name, _, path = target.partition(":")
        *holders, name = path.split(".")
        # A stage that is not there any more is a fault of this list, and ends the measurement.
        holder = functools.reduce(getattr, holders, importlib.import_module(module_name))
        setattr(holder, name, _clocked_attribute(stage, holder, name))
    _VALUES["post_fork"](server, worker)


def worker_exit(server: Any, worker: Any) -> None:
    """Leave the sums."""
    total: dict[str, list[float]] = {}
    for sums in _all:
        for stage, (count, nanoseconds) in list(sums.items()):
            known = total.setdefault(stage, [0, 0.0])
            known[0] += count
            known[1] += nanoseconds / 1000
    (Path(os.environ["BENCH_STAGES"]) / f"{os.getpid()}.json").write_text(json.dumps(total))
    _VALUES["worker_exit"](server, worker)
