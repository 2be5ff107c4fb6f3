"""Flask as we use it, and what every HTTP answer has in common: a request id, security headers, JSON for every error.

The endpoints themselves are left to ``endpoints``; what the worker answers before the application is reached, to
``worker``.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
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
"""As Werkzeug writes them."""


class Response(FlaskResponse):
    """A response that is sent once, as it is: nothing of it is copied, and nothing is to be closed.

    :param body: the whole of it, in bytes.
    :param headers: what else is to be said; none of it comes from a caller unchecked.
    """

    def __init__(
        self,
        body: bytes = b"",
        status: int = HTTPStatus.OK,
        headers: Iterable[tuple[str, str]] = (),
        content_type: str = FlaskResponse.default_mimetype,  # type: ignore[assignment]
    ) -> None:
        # What Werkzeug's own does, for the one kind of body that we have; it looks at each header several times.
        self.headers = Headers()
        self.headers._list += ("Content-Type", content_type), ("Content-Length", str(len(body))), *headers  # noqa: SLF001
        self._status, self._status_code = _STATUS_LINES[status], int(status)
        self.direct_passthrough = False
        self._on_close = []
        self.response = [body]

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Leave to Werkzeug what has no body, or of another make."""
        if self.status_code == HTTPStatus.NOT_MODIFIED:
            # What is said of a body that is not sent is not said: RFC 9110 section 15.4.5.
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
    """A request, with what is known of each.

    :ivar request_id: unique, for the log and the answer.
    :ivar source_address: where it came from.
    :ivar received_at: when it was complete, by :func:`time.perf_counter`.
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
        """What most requests are not asked for, made when it is."""
        if name not in _MADE_WHEN_ASKED_FOR:
            raise AttributeError(name)
        super().__init__(self.environ, populate_request=False)
        return self.__dict__[name]

    def begin(self, trusted_proxies: TrustedProxies) -> None:
        """Find out who asks, and give the request its id."""
        environ = self.environ
        self.received_at = environ.get(RECEIVED_AT) or time.perf_counter()
        self.source_address = environ.get("REMOTE_ADDR") or UNIX
        if trusted_proxies and is_trusted(self.source_address, trusted_proxies):
            headers = self.headers
            self.request_id = parse_request_id(headers.get("X-Request-ID")) or ""
            self.source_address = find_source(
                self.source_address, headers.get("X-Forwarded-For"), headers.get("Forwarded"), trusted_proxies
            )
        self.request_id = self.request_id or secrets.token_hex(REQUEST_ID_RANDOM_BYTES)

    def finish(self, response: FlaskResponse) -> None:
        """Say in ``response`` what every answer says."""
        headers = response.headers
        # An id that was given has passed a grammar.
        headers._list += ("X-Request-ID", self.request_id), _NO_SNIFFING  # noqa: SLF001
        if "Cache-Control" not in dict(headers._list):  # noqa: SLF001
            headers._list.append(_NO_STORE)  # noqa: SLF001
        if self.method == "OPTIONS" and not response.content_length:
            # Flask's own answer to OPTIONS has no body and says that it is HTML.
            headers.pop("Content-Type", None)


_MADE_WHEN_ASKED_FOR = {"scheme", "server", "root_path", "query_string", "headers", "remote_addr"}
"""By Werkzeug's own constructor."""


class _NoSessions(SessionInterface):
    """There are no users, so there is nothing to remember of one."""

    _none = NullSession()

    def open_session(self, app: Flask, request: FlaskRequest) -> NullSession:  # noqa: ARG002
        return self._none


class Application(Flask):
    """Flask without what a token server never has: sessions, signals, and routes that depend on the host.

    :param trusted_proxies: from whom an address and a request id are taken.
    """

    request_class = Request
    session_interface = _NoSessions()

    def __init__(self, name: str, trusted_proxies: TrustedProxies = (), **options: Any) -> None:
        self._trusted_proxies = trusted_proxies
        self._contextless_views: dict[tuple[str, str], tuple[_View, Sequence[_Step]]] = {}
        super().__init__(name, static_folder=None, **options)
        # A redirect to a tidier path would be the only answer that is not JSON, and would repeat what the caller sent.
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = True
        self.register_error_handler(HTTPException, _answer_http_error)
        self.register_error_handler(Exception, _answer_unexpected)

    def wsgi_app(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Serve a request in Flask's way, or at once where a view is known that needs nothing of it."""
        known = self._contextless_views.get((environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]))
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
        """Find out who asks before anything else is done."""
        request: Request = request_ctx.request  # type: ignore[assignment]
        request.begin(self._trusted_proxies)
        return _answer_options(request) or super().preprocess_request()

    def dispatch_request(self) -> Any:
        """Call the view, and remember it for the short way if it needs nothing of this one."""
        request: Request = request_ctx.request  # type: ignore[assignment]
        rule, path = request.url_rule, request.environ.get("PATH_INFO")
        if rule and rule.rule == path and request.method != "OPTIONS":
            view = getattr(self.view_functions[rule.endpoint], "without_contexts", None)
            if view:
                self._contextless_views[path, request.method] = view, self._last_steps(rule.endpoint)
        return super().dispatch_request()

    def process_response(self, response: Any) -> Any:
        """Do what is to be done after each request; there is no session to save."""
        request: Request = request_ctx.request  # type: ignore[assignment]
        for step in self._last_steps(request.endpoint):
            response = step(response)
        request.finish(response)
        return response

    def _last_steps(self, endpoint: str | None) -> "Sequence[_Step]":
        """What is to be done with answers of ``endpoint``, first for its blueprint."""
        names = [endpoint.partition(".")[0], None] if endpoint else [None]
        steps: Any = (step for name in names for step in reversed(self.after_request_funcs.get(name, ())))
        return tuple(steps)

    def create_url_adapter(self, request: FlaskRequest | None) -> MapAdapter | None:
        """Find routes by path and method alone; what a ``Host`` header says is of no interest."""
        if request is None:
            return None
        return MapAdapter(self.url_map, "localhost", "/", "", "http", request.path, request.method)


_View = Callable[[Request], FlaskResponse]
_Step = Callable[[FlaskResponse], FlaskResponse]


def without_contexts(view: _View) -> Callable[[], FlaskResponse]:
    """Let ``view`` be served without Flask's contexts.

    It is given the request, and uses neither ``flask.g`` nor a session of the database; what is to be done before each
    request is done before the first one for its path only.
    """

    @wraps(view)
    def in_contexts() -> FlaskResponse:
        return view(request_ctx.request)  # type: ignore[arg-type]

    in_contexts.without_contexts = view  # type: ignore[attr-defined]
    return in_contexts


def json_response(status: int, body: object) -> Response:
    """A JSON answer without more."""
    return Response(encode_json(body), status, content_type="application/json")


def _answer_options(request: FlaskRequest) -> FlaskResponse | None:
    """``OPTIONS *`` asks about the server as a whole: RFC 9110 section 9.3.7."""
    if request.method != "OPTIONS" or request.environ.get("RAW_URI") != "*":
        return None
    return Response(headers=[("Allow", "GET, HEAD, POST, OPTIONS")])


def _answer_http_error(error: HTTPException) -> FlaskResponse:
    """Answer 404, 405 and their like in our form, with the ``Allow`` that a 405 must have."""
    status = error.code or 500
    request: Request = request_ctx.request  # type: ignore[assignment]
    # Not the path: what stands in it is the caller's.
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
    # The endpoint, not the path: what stands in a path is the caller's.
    log.error("a request failed, request_id=%s endpoint=%s", request.request_id, request.endpoint, exc_info=error)
    return json_response(500, http_error_body(500))
