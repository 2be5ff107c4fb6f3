"""What every HTTP answer has in common: a request id, security headers, and JSON for every error.

The endpoints themselves are left to ``endpoints``; what the worker answers before the application is reached, to
``worker``.
"""

import json
import logging
import secrets
import time

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from app.errors import below_oauth
from app.proxies import UNIX, Trusted, find_source, is_trusted, take_request_id

log = logging.getLogger(__name__)

REQUEST_ID_RANDOM_BYTES = 16

encode_json = json.JSONEncoder(separators=(",", ":")).encode
"""Compact JSON. ``json.dumps`` with an option makes an encoder for each call."""


def install(app: Flask, trusted_proxies: Trusted = ()) -> None:
    """Give every answer of ``app`` these properties.

    :param trusted_proxies: from whom an address and a request id are taken.
    """
    # A redirect to a tidier path would be the only answer that is not JSON, and would repeat what the caller sent.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    app.before_request(lambda: _begin(trusted_proxies))
    app.before_request(_answer_options_of_the_server)
    app.after_request(_finish)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_unexpected)


def json_response(status: int, body: object) -> Response:
    """A JSON answer without more."""
    return Response(encode_json(body), status, content_type="application/json")


def _begin(trusted_proxies: Trusted) -> None:
    g.received_at = request.environ.get("tokenhouse.received_at") or time.perf_counter()
    given_id = None
    g.source_address = request.remote_addr or UNIX
    if trusted_proxies and is_trusted(g.source_address, trusted_proxies):
        headers = request.headers
        given_id = take_request_id(headers.get("X-Request-ID"))
        g.source_address = find_source(
            g.source_address, headers.get("X-Forwarded-For"), headers.get("Forwarded"), trusted_proxies
        )
    g.request_id = given_id or secrets.token_hex(REQUEST_ID_RANDOM_BYTES)


def _answer_options_of_the_server() -> Response | None:
    """``OPTIONS *`` asks about the server as a whole: RFC 9110 section 9.3.7."""
    if request.method != "OPTIONS" or request.environ.get("RAW_URI") != "*":
        return None
    return Response(headers={"Allow": "GET, HEAD, POST, OPTIONS"})


def _finish(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    if request.method == "OPTIONS" and not response.content_length:
        # Flask's own answer to OPTIONS has no body and says that it is HTML.
        response.headers.pop("Content-Type", None)
    return response


def _answer_http_error(error: HTTPException) -> Response:
    """Answer 404, 405 and their like in our form, with the ``Allow`` that a 405 must have."""
    status = error.code or 500
    # Not the path: what stands in it is the caller's.
    log.info("Refused with %d: %s from %s, request_id=%s", status, error.name, g.source_address, g.request_id)
    answer = json_response(status, below_oauth(status))
    for name, value in error.get_headers():
        if name in {"Allow", "Retry-After"}:
            answer.headers[name] = value
    return answer


def _answer_unexpected(error: Exception) -> Response:
    # The endpoint, not the path: what stands in a path is the caller's.
    log.error("a request failed, request_id=%s endpoint=%s", g.request_id, request.endpoint, exc_info=error)
    return json_response(500, below_oauth(500))
