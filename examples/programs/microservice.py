"""A service that verifies its callers' tokens, and calls another API with its own."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import jwt
import requests
from flask import Flask, Response, g, jsonify, request
from prometheus_client import Counter, make_wsgi_app
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tokens import Account, Session, TokenError, need

ISSUER = need("ISSUER")
AUDIENCE = os.environ.get("AUDIENCE", ISSUER)
"""What `aud` of a caller's token must hold: the URL of this service."""
API_URL = need("API_URL")
CLOCK_SKEW_SECONDS = 30

logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), stream=sys.stderr, format="%(levelname)s %(message)s")
log = logging.getLogger("microservice")


class Keys(jwt.PyJWKClient):
    """The issuer's keys, kept for ten minutes, and on while it is away: nobody waits in line for it again and again.

    A key that is not among them is looked for at once, at most every 30 s: garbage is cheap.
    """

    def __init__(self) -> None:
        super().__init__(
            f"{ISSUER}/.well-known/jwks.json", lifespan=float(os.environ.get("JWKS_SECONDS", "600")), timeout=5
        )
        self._last: Any = None

    def fetch_data(self) -> Any:
        """Fetch them; the last good ones where that cannot be, until the next look."""
        try:
            self._last = super().fetch_data()
        except (jwt.PyJWTError, ValueError) as error:
            log.error("the issuer's keys cannot be had: %s", type(error).__name__)  # noqa: TRY400
            if self._last is None:
                raise jwt.PyJWKClientConnectionError("no keys yet") from None
        return self._last


keys = Keys()
session = Session(Account.from_environment(), connections=64)
SERVED = Counter("served_requests_total", "Requests answered.", ["status"])

app = Flask(__name__)
# Where only the metrics system gets to it: see the README.
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/metrics": make_wsgi_app()})  # type: ignore[method-assign]


class Refused(Exception):
    """A caller without a good token: a status, and the challenge of RFC 6750 section 3."""

    def __init__(self, status: int, error: str = "", **more: str) -> None:
        self.status = status
        parts = {"error": error} | more if error else {}
        self.challenge = " ".join(["Bearer", ", ".join(f'{name}="{value}"' for name, value in parts.items())]).rstrip()
        super().__init__(error or "no token")


def verify(token: str) -> dict[str, Any]:
    """Verify an access token (RFC 9068 section 4); its claims."""
    try:
        if jwt.get_unverified_header(token).get("typ", "").lower() not in {"at+jwt", "application/at+jwt"}:
            raise Refused(401, "invalid_token")
        # The algorithm is ours to choose, never the token's.
        return jwt.decode(token, keys.get_signing_key_from_jwt(token), algorithms=["RS256"], issuer=ISSUER,
                          audience=AUDIENCE, leeway=CLOCK_SKEW_SECONDS,
                          options={"require": ["exp", "iat", "iss", "aud", "sub", "client_id", "jti"]})  # fmt: skip
    except jwt.PyJWKClientConnectionError:
        raise Refused(503) from None
    except (jwt.PyJWTError, AttributeError):
        raise Refused(401, "invalid_token") from None


def requires(scope: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Let in callers whose token holds a scope."""

    def decorate(view: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(view)
        def guarded() -> Any:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Refused(401)
            g.claims = verify(token.strip())
            if scope not in str(g.claims.get("scope", "")).split():
                raise Refused(403, "insufficient_scope", scope=scope)
            return view()

        return guarded

    return decorate


@app.get("/orders")
@requires("things:read")
def orders() -> Any:
    """What another API says, fetched with our own token: the caller's is for us alone."""
    answer = session.get(API_URL)
    if not answer.ok:
        log.error("the API answered %s caller=%s", answer.status_code, g.claims["client_id"])
        return jsonify(error="bad_gateway"), 502
    return jsonify(caller=g.claims["client_id"], things=answer.json())


@app.get("/healthz")
def healthz() -> Any:
    """Alive. Others' health is not ours: a restart would not mend them."""
    return jsonify(status="ok")


@app.errorhandler(Refused)
def refuse(error: Refused) -> Any:
    """Say what is missing."""
    log.info("refused %s %s", error.status, error)
    if error.status == 503:
        return jsonify(error="temporarily_unavailable"), 503, {"Retry-After": "5"}
    return jsonify(error=str(error)), error.status, {"WWW-Authenticate": error.challenge}


@app.errorhandler(TokenError)
def tell_no_token(error: TokenError) -> Any:
    """Say to our operator what to do: our credentials are their matter. The caller hears that it may come again."""
    log.error("no token for %s: %s", session.account.client_id, error)
    return jsonify(error="temporarily_unavailable"), 503, {"Retry-After": "30"}


@app.errorhandler(requests.RequestException)
def tell_unreachable(error: requests.RequestException) -> Any:
    """The API that we call is away."""
    log.error("the API is unreachable: %s", type(error).__name__)
    return jsonify(error="gateway_timeout" if isinstance(error, requests.Timeout) else "bad_gateway"), 504


@app.errorhandler(HTTPException)
def tell(error: HTTPException) -> Any:
    """404 and its like, as JSON."""
    return jsonify(error=error.name.lower().replace(" ", "_")), error.code or 500


@app.after_request
def count(answer: Response) -> Response:
    """Count what was answered."""
    SERVED.labels(answer.status_code).inc()
    return answer
