"""Calls to APIs with a token that is kept, replaced in time, and fetched once for all threads; counted and timed.

requests makes the calls, Authlib keeps the token and knows when it ends, urllib3 repeats, prometheus-client counts.
What is ours: the lock, so that threads that find a token old fetch one and not two hundred; one more try after 401;
the errors.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from prometheus_client import Histogram
from requests import HTTPError, RequestException, Response
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

TIMEOUT_SECONDS = 10
ATTEMPTS = 5
LONGEST_WAIT_SECONDS = 60
WORTH_A_RETRY = (429, 500, 502, 503, 504)

REQUESTS = Histogram(
    "outbound_request_duration_seconds",
    "Requests made, with their repetitions; outcome is ok, a status, the token server's error, or unreachable.",
    ["target", "outcome"],
)
"""`_count`: how many there were, of which outcome="ok" went well; `_sum` and the buckets: the latency."""


class NotSet(Exception):
    """A variable that the program needs."""


def need(name: str) -> str:
    """A variable of the environment. Raises NotSet."""
    if value := os.environ.get(name):
        return value
    raise NotSet(f"{name} must be set")


class TokenError(Exception):
    """There is no token. ``code`` is what the token server said (RFC 6749 section 5.2); nothing here is secret."""

    advice = "see docs/http.md"

    def __init__(self, code: str, description: str) -> None:
        self.code = code
        super().__init__(f"{code}: {description} ({self.advice})")


class CredentialsRefused(TokenError):
    """invalid_client."""

    advice = "check CLIENT_ID and the secret: it may be wrong, over, or the client disabled"


class ScopeRefused(TokenError):
    """invalid_scope: the description names the scope."""

    advice = "ask for less, or have the client granted more"


class GrantRefused(TokenError):
    """unauthorized_client."""

    advice = "the client was not made for the grant client_credentials"


class ServerUnavailable(TokenError):
    """server_error and its like, and no answer: repeated already, in vain."""

    advice = "the token server cannot answer now, and several attempts did not help"


ERRORS = {
    "invalid_client": CredentialsRefused,
    "invalid_scope": ScopeRefused,
    "unauthorized_client": GrantRefused,
    "server_error": ServerUnavailable,
    "temporarily_unavailable": ServerUnavailable,
}


@dataclass(frozen=True)
class Account:
    """Who asks, whom, and for what. The secret is read at each fetch, so that one that was rotated is taken."""

    token_url: str
    client_id: str
    scope: str | None = None
    secret_file: str | None = None
    secret: str | None = None

    @classmethod
    def from_environment(cls) -> "Account":
        """From TOKEN_URL, CLIENT_ID, SCOPE, and CLIENT_SECRET_FILE or CLIENT_SECRET."""
        get = os.environ.get
        return cls(need("TOKEN_URL"), need("CLIENT_ID"), get("SCOPE"), get("CLIENT_SECRET_FILE"), get("CLIENT_SECRET"))

    def read_secret(self) -> str:
        """The secret of now."""
        if self.secret_file:
            return Path(self.secret_file).read_text().strip()
        if self.secret:
            return self.secret
        raise CredentialsRefused("no_secret", "Neither CLIENT_SECRET_FILE nor CLIENT_SECRET is set.")

    def __repr__(self) -> str:
        return f"Account({self.client_id} at {self.token_url})"


class Session(OAuth2Session):
    """A requests session for all threads of a program, whose calls carry a good token."""

    def __init__(self, account: Account, connections: int = 32) -> None:
        super().__init__(account.client_id, token_endpoint=account.token_url, grant_type="client_credentials",
                         scope=account.scope, token_endpoint_auth_method="client_secret_basic")  # fmt: skip
        self.account = account
        self._renewing = threading.Lock()
        # As Retry-After says after 429 and 503, otherwise longer each time and never all at once.
        retry = Retry(ATTEMPTS - 1, status_forcelist=WORTH_A_RETRY, backoff_factor=0.5, backoff_jitter=0.5,
                      retry_after_max=LONGEST_WAIT_SECONDS, raise_on_status=False)  # fmt: skip
        for scheme in ("http://", "https://"):
            self.mount(scheme, HTTPAdapter(pool_maxsize=connections, max_retries=retry))
        # A token request may be repeated though it is a POST. Of an API's, those that HTTP calls idempotent are.
        self.mount(account.token_url, HTTPAdapter(max_retries=retry.new(allowed_methods=None)))

    def request(self, method: str, url: str, *, auth: Any = None, **more: Any) -> Response:
        """Call an API; once more with a fresh token when it does not take the present one. Raises TokenError."""
        more.setdefault("timeout", TIMEOUT_SECONDS)
        if auth is not None:  # the token request itself
            return super().request(method, url, auth=auth, **more)
        with measured("api") as seen:
            used = self._good_token()
            answer = super().request(method, url, **more)
            if answer.status_code == 401:
                self._good_token(instead_of=used)
                answer = super().request(method, url, **more)
            seen.outcome = "ok" if answer.ok else str(answer.status_code)
        return answer

    def ensure_active_token(self, token: object = None) -> bool:
        """Asked by the library before each request; `_good_token` has seen to it."""
        return True

    def _good_token(self, instead_of: str | None = None) -> str:
        with self._renewing:
            if not is_good(self.token) or self.token["access_token"] == instead_of:
                self.renew(instead_of)
            return str(self.token["access_token"])

    def renew(self, instead_of: str | None) -> None:
        """Fetch a token; one thread at a time is in here."""
        with measured("token") as seen:
            try:
                self.client_secret = self.account.read_secret()
                self.fetch_token(self.account.token_url)
                seen.outcome = "ok"
            except (OAuthError, RequestException, OSError) as error:
                raise as_token_error(error) from None


def is_good(token: Any) -> bool:
    """Whether a token is used: until five minutes before its end, or half of a lifetime under ten minutes."""
    return bool(token) and time.time() < token["expires_at"] - min(300, token["expires_in"] // 2)


def as_token_error(error: Exception) -> TokenError:
    """What went wrong with a token request, by its code."""
    code, description = "unreachable", type(error).__name__
    if isinstance(error, OAuthError):
        code, description = error.error, error.description
    elif isinstance(error, HTTPError):  # 5xx: the library does not read it
        with contextlib.suppress(ValueError, LookupError, TypeError):
            told = error.response.json()
            code, description = told["error"], told["error_description"]
    elif isinstance(error, OSError) and error.filename:
        return CredentialsRefused("no_secret", f"{error.filename}: {error.strerror}")
    return ERRORS.get(code, ServerUnavailable if code == "unreachable" else TokenError)(code, description)


class Seen:
    """What became of a request."""

    outcome = "unreachable"


@contextlib.contextmanager
def measured(target: str) -> Iterator[Seen]:
    """Count and time a request."""
    seen, began = Seen(), time.perf_counter()
    try:
        yield seen
    except TokenError as error:
        seen.outcome = error.code if target == "token" else "no_token"
        raise
    finally:
        REQUESTS.labels(target, seen.outcome).observe(time.perf_counter() - began)
