"""The Flask class, and what every HTTP response has in common: a request id, security headers, JSON for every error.

The endpoints are left to ``oauth.endpoints``; responses to requests that never reach the application, to
``buffered_worker``.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from http import HTTPStatus
from typing import Any

from flask import Flask
from flask import Request as FlaskRequest
from flask import Response as FlaskResponse
from flask.ctx import RequestContext
from flask.globals import request_ctx
from flask.sessions import NullSession, SessionInterface
from orjson import dumps as encode_json
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from app.config.values import UNIX, TrustedProxies
from app.errors import http_error_body
from app.http.forwarded_headers import find_source, is_trusted, parse_request_id

log = logging.getLogger(__name__)

REQUEST_ID_RANDOM_BYTES = 16

RECEIVED_AT = "buffered_worker.received_at"
"""The WSGI variable in which the worker leaves the time at which the request was complete."""

_NO_SNIFFING = ("X-Content-Type-Options", "nosniff")
_NO_STORE = ("Cache-Control", "no-store")

_STATUS_LINES = {status.value: f"{status.value} {status.phrase.upper()}" for status in HTTPStatus}
"""Status lines as Werkzeug writes them."""


class Response(FlaskResponse):
    """A response with a complete body, sent once. It skips Werkzeug's copies and checks, which cost 47 µs.

    :param body: the whole body.
    :param headers: further headers; none may come from a caller unchecked.
    """

    def __init__(
        self,
        body: bytes = b"",
        status: int = HTTPStatus.OK,
        headers: Iterable[tuple[str, str]] = (),
        content_type: str = FlaskResponse.default_mimetype,  # type: ignore[assignment]
    ) -> None:
        # This does what Werkzeug's constructor does, for the one kind of body that we have. Werkzeug's inspects each
        # header several times.
        self.headers = Headers()
        self.headers._list += ("Content-Type", content_type), ("Content-Length", str(len(body))), *headers  # noqa: SLF001
        self._status, self._status_code = _STATUS_LINES[status], int(status)
        self.direct_passthrough = False
        self._on_close = []
        self.response = [body]

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Send the response; leave responses without a body, and bodies that were replaced, to Werkzeug."""
        if self.status_code == HTTPStatus.NOT_MODIFIED:
            # A 304 has no headers about a body: RFC 9110 section 15.4.5.
            start_response(self.status, [one for one in self.headers if not one[0].lower().startswith("content-")])
            return ()
        if (
            self.status_code == HTTPStatus.NO_CONTENT
            or environ["REQUEST_METHOD"] == "HEAD"
            or type(self.response) is not list
        ):
            return super().__call__(environ, start_response)
        start_response(self.status, self.headers.to_wsgi_list())
        return self.response


class Request(FlaskRequest):
    """A request.

    :ivar request_id: unique, for the log and the response.
    :ivar source_address: the address of the caller, behind trusted proxies too.
    :ivar received_at: when the request was complete, by :func:`time.perf_counter`.
    """

    request_id = ""
    source_address = UNIX
    received_at = 0.0

    def __init__(self, environ: Any, populate_request: bool = True, shallow: bool = False) -> None:  # noqa: FBT001, FBT002
        self.environ, self.shallow = environ, shallow
        self.method, self.path = environ["REQUEST_METHOD"], environ.get("PATH_INFO") or "/"
        if not (self.path[0] == "/" and self.path.isascii()):
            super().__init__(environ, populate_request, shallow)

    def __getattr__(self, name: str) -> Any:
        """Create the attributes that most requests never need."""
        if name not in _MADE_WHEN_ASKED_FOR:
            raise AttributeError(name)
        super().__init__(self.environ, populate_request=False)
        return self.__dict__[name]

    def begin(self, trusted_proxies: TrustedProxies) -> None:
        """Determine the caller's address and the request id."""
        environ = self.environ
        self.received_at = environ.get(RECEIVED_AT) or time.perf_counter()
        self.source_address = peer_of(environ)
        if trusted_proxies and is_trusted(self.source_address, trusted_proxies):
            headers = self.headers
            self.request_id = parse_request_id(headers.get("X-Request-ID")) or ""
            self.source_address = find_source(
                self.source_address, headers.get("X-Forwarded-For"), headers.get("Forwarded"), trusted_proxies
            )
        self.request_id = self.request_id or secrets.token_hex(REQUEST_ID_RANDOM_BYTES)

    def finish(self, response: FlaskResponse) -> None:
        """Add the headers that every response has."""
        headers = response.headers
        # A request id from a proxy has passed its grammar.
        headers._list += ("X-Request-ID", self.request_id), _NO_SNIFFING  # noqa: SLF001
        if "Cache-Control" not in dict(headers._list):  # noqa: SLF001
            headers._list.append(_NO_STORE)  # noqa: SLF001
        if self.method == "OPTIONS" and not response.content_length:
            # Flask's own response to OPTIONS has no body and yet says that it is HTML.
            headers.pop("Content-Type", None)


_MADE_WHEN_ASKED_FOR = {"scheme", "server", "root_path", "query_string", "headers", "remote_addr"}
"""Set by Werkzeug's own constructor."""


def peer_of(environ: Mapping[str, Any]) -> str:
    """Return the address of the TCP peer, or :data:`UNIX`.

    A dual-stack socket shows an IPv4 peer as an IPv4-mapped address: RFC 4291 section 2.5.5.2.
    """
    return (environ.get("REMOTE_ADDR") or UNIX).removeprefix("::ffff:")


class _NoSessions(SessionInterface):
    """No sessions: there are no users."""

    _none = NullSession()

    def open_session(self, app: Flask, request: FlaskRequest) -> NullSession:  # noqa: ARG002
        return self._none


class Application(Flask):
    """Flask without sessions, signals, and routes that depend on the host.

    :param trusted_proxies: the proxies whose forwarded addresses and request ids are used.
    """

    request_class = Request
    session_interface = _NoSessions()

    def __init__(self, name: str, trusted_proxies: TrustedProxies = (), **options: Any) -> None:
        self._trusted_proxies = trusted_proxies
        self._direct_views: dict[tuple[str, str], tuple[_View, Sequence[_Step]]] = {}
        super().__init__(name, static_folder=None, **options)
        # A redirect to a normalized path would be the only response that is not JSON, and would reflect the caller's
        # path.
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = True
        self.register_error_handler(HTTPException, _answer_http_error)
        self.register_error_handler(Exception, _answer_unexpected)

    def wsgi_app(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Serve a request in Flask's way, or directly if its view needs none of Flask's contexts."""
        known = self._direct_views.get((environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]))
        if known is None:
            return super().wsgi_app(environ, start_response)
        view, last_steps = known
        request = Request(environ)
        request.begin(self._trusted_proxies)
        try:
            response = view(request)
            for step in last_steps:
                response = step(response)
            request.finish(response)
        except Exception as error:  # noqa: BLE001 - It is answered as Flask does.
            with RequestContext(self, environ, request):
                response = self.finalize_request(self.handle_user_exception(error))
        return response(environ, start_response)

    def preprocess_request(self) -> Any:
        """Identify the caller before any other ``before_request`` function runs."""
        request: Request = request_ctx.request  # type: ignore[assignment]
        request.begin(self._trusted_proxies)
        return _answer_options(request) or super().preprocess_request()

    def serve_directly(self) -> None:
        """Serve the views that need no contexts directly from now on; ``create_app`` calls this last.

        :raises RuntimeError: a function of Flask's way would be skipped.
        """
        for rule in self.url_map.iter_rules():
            view = getattr(self.view_functions[rule.endpoint], "without_contexts", None)
            if view is None or rule.arguments:
                continue
            self._require_nothing_skipped(rule.endpoint)
            for method in (rule.methods or set()) - {"OPTIONS"}:
                self._direct_views[rule.rule, method] = view, self._last_steps(rule.endpoint)
        # From now on Flask refuses to register another function, which would be skipped too.
        self._got_first_request = True

    def _require_nothing_skipped(self, endpoint: str) -> None:
        skipped: Any = {
            "before_request": self.before_request_funcs,
            "teardown_request": self.teardown_request_funcs,
            "url_value_preprocessor": self.url_value_preprocessors,
        }
        for kind, functions in skipped.items():
            for name in (None, endpoint.partition(".")[0]):
                if functions.get(name):
                    raise RuntimeError(
                        f"{functions[name][0].__qualname__} ({kind}) would never run: {endpoint} is served without "
                        "Flask's contexts"
                    )

    def process_response(self, response: Any) -> Any:
        """Run the ``after_request`` functions. There is no session to save."""
        request: Request = request_ctx.request  # type: ignore[assignment]
        for step in self._last_steps(request.endpoint):
            response = step(response)
        request.finish(response)
        return response

    def _last_steps(self, endpoint: str | None) -> "Sequence[_Step]":
        """Return the ``after_request`` functions for ``endpoint``, its blueprint's first."""
        names = [endpoint.partition(".")[0], None] if endpoint else [None]
        steps: Any = (step for name in names for step in reversed(self.after_request_funcs.get(name, ())))
        return tuple(steps)

    def create_url_adapter(self, request: FlaskRequest | None) -> MapAdapter | None:
        """Find routes by path and method alone, whatever the ``Host`` header says."""
        if request is None:
            return None
        # Werkzeug drops leading slashes: `//readyz` would be served, past a proxy's rules for `/readyz`.
        path = _UNROUTABLE if request.path.startswith("//") else request.path
        return MapAdapter(self.url_map, "localhost", "/", "", "http", path, request.method)


_UNROUTABLE = "/\0"
"""A path that no route has."""

_View = Callable[[Request], FlaskResponse]
_Step = Callable[[FlaskResponse], FlaskResponse]


def without_contexts(view: _View) -> Callable[[], FlaskResponse]:
    """Let ``view`` be called without Flask's contexts, which saves 78 µs a request under load.

    The view gets the request as its argument, and may use neither ``flask.g`` nor a session of the database.
    ``after_request`` functions run. Where a ``before_request`` or ``teardown_request`` function would have to run, the
    application does not start.
    """

    @wraps(view)
    def in_contexts() -> FlaskResponse:
        return view(request_ctx.request)  # type: ignore[arg-type]

    in_contexts.without_contexts = view  # type: ignore[attr-defined]
    return in_contexts


def json_response(status: int, body: object) -> Response:
    """Return a JSON response."""
    return Response(encode_json(body), status, content_type="application/json")


def _answer_options(request: FlaskRequest) -> FlaskResponse | None:
    """Answer ``OPTIONS *``, which asks about the server as a whole: RFC 9110 section 9.3.7."""
    if request.method != "OPTIONS" or request.environ.get("RAW_URI") != "*":
        return None
    return Response(headers=[("Allow", "GET, HEAD, POST, OPTIONS")])


def _answer_http_error(error: HTTPException) -> FlaskResponse:
    """Answer 404, 405 and the like as JSON, with the ``Allow`` that a 405 must have."""
    status = error.code or 500
    request: Request = request_ctx.request  # type: ignore[assignment]
    # Do not log the path: the caller wrote it.
    log.info(
        "Refused with %d: %s from %s, request_id=%s", status, error.name, request.source_address, request.request_id
    )
    response = json_response(status, http_error_body(status))
    for name, value in error.get_headers():
        if name in {"Allow", "Retry-After"}:
            response.headers[name] = value
    return response


def _answer_unexpected(error: Exception) -> FlaskResponse:
    request: Request = request_ctx.request  # type: ignore[assignment]
    # Log the endpoint, not the path: the caller wrote the path.
    log.error("a request failed, request_id=%s endpoint=%s", request.request_id, request.endpoint, exc_info=error)
    return json_response(500, http_error_body(500))
