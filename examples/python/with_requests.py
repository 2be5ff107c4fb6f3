"""Threads that call an API: requests, and Authlib's OAuth2Session, which fetches a new token when the old one ends.

The library has no lock: `Session` adds it, so that many threads share one fetch, and the one retry after 401.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from requests import HTTPError, Response
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from common import (
    API_URL,
    ATTEMPTS,
    CALLS,
    CLIENT_ID,
    PAUSE_SECONDS,
    ROUNDS,
    SCOPE,
    TOKEN_URL,
    WORTH_A_RETRY,
    early_seconds,
    give_up,
    read_secret,
    report,
)

TIMEOUT_SECONDS = 10


class Session(OAuth2Session):
    """Shared by all threads; keeps its token in memory."""

    def __init__(self) -> None:
        super().__init__(CLIENT_ID, token_endpoint_auth_method="client_secret_basic", scope=SCOPE,
                         token_endpoint=TOKEN_URL, grant_type="client_credentials")  # fmt: skip
        # Waits as Retry-After says after 429 and 503, otherwise longer each time and never all at once. A token request
        # may be repeated, so POST is among them.
        retry = Retry(ATTEMPTS - 1, status_forcelist=WORTH_A_RETRY, allowed_methods=None, backoff_factor=0.5,
                      backoff_jitter=0.5, raise_on_status=False)  # fmt: skip
        for scheme in ("http://", "https://"):
            self.mount(scheme, HTTPAdapter(pool_maxsize=CALLS, max_retries=retry))
        self._fetching = threading.Lock()

    def ensure_active_token(self, token: object = None) -> bool:
        """Called by the library before each request."""
        with self._fetching:
            if self.token.is_expired(leeway=self.leeway):
                self.fetch()
        return True

    def fetch(self) -> None:
        """Fetch a token, with the secret of now: it may have been rotated."""
        self.client_secret = read_secret()
        self.ask()

    def ask(self) -> None:
        """Make the request."""
        self.fetch_token(TOKEN_URL, timeout=TIMEOUT_SECONDS)
        self.leeway = early_seconds(self.token["expires_in"])

    def call(self, url: str) -> Response:
        """Call the API; once more with a fresh token when it does not take the present one."""
        with self._fetching:
            if not self.token:
                self.fetch()
        used = self.token["access_token"]
        answer = self.get(url, timeout=TIMEOUT_SECONDS)
        if answer.status_code == 401:
            with self._fetching:
                if self.token["access_token"] == used:
                    self.fetch()
            answer = self.get(url, timeout=TIMEOUT_SECONDS)
        return answer


def main(session: Session) -> None:
    """Make some calls at once, several times."""
    with ThreadPoolExecutor(CALLS) as threads:
        for number in range(1, ROUNDS + 1):
            try:
                answers = list(threads.map(session.call, [API_URL] * CALLS))
            except OAuthError as error:
                give_up(error.error, error.description)
            except HTTPError as error:
                # What the library does not read: 5xx of the token server, after the last attempt.
                told = error.response.json()
                give_up(told["error"], told["error_description"])
            report(number, [answer.status_code for answer in answers])
            if number < ROUNDS:
                time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(Session())
