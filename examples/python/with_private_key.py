"""The same as with_requests.py for a client without a secret: it signs an assertion with its key.

An assertion is good once. One that the server may have seen is never sent again: each attempt signs a new one.
"""

import os
import random
import time
from pathlib import Path

import requests
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from requests import HTTPError, Response
from requests.adapters import HTTPAdapter
from with_requests import Session, main

from common import ATTEMPTS, CALLS, ISSUER, TOKEN_URL, WORTH_A_RETRY

KEY_FILE = Path(os.environ["CLIENT_KEY_FILE"])


class KeySession(Session):
    """Shared by all threads; keeps its token in memory."""

    def __init__(self) -> None:
        super().__init__()
        # What it names as the audience of its assertions: the issuer alone (RFC 10070).
        self.token_endpoint_auth_method = PrivateKeyJWT(ISSUER)
        self.register_compliance_hook("access_token_response", _refuse_what_is_worth_a_retry)
        # The API may be asked again in the same words, the token endpoint may not.
        self.mount(TOKEN_URL, HTTPAdapter(pool_maxsize=CALLS, max_retries=0))

    def fetch(self) -> None:
        """Fetch a token, with the key of now: it may have been replaced."""
        self.client_secret = KEY_FILE.read_text()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.ask()
            except (HTTPError, requests.ConnectionError, requests.Timeout) as error:
                if attempt == ATTEMPTS:
                    raise
                told = error.response.headers.get("Retry-After", "") if error.response is not None else ""
                time.sleep(int(told) if told.isdecimal() else random.uniform(0, 0.5 * 2**attempt))
            else:
                return


def _refuse_what_is_worth_a_retry(answer: Response) -> Response:
    if answer.status_code in WORTH_A_RETRY:
        answer.raise_for_status()
    return answer


if __name__ == "__main__":
    main(KeySession())
