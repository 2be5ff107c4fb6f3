"""What both examples share: settings, errors that say what to do, and the calls that they make to show it all."""

import os
import sys
from pathlib import Path

TOKEN_URL = os.environ["TOKEN_URL"]
ISSUER = os.environ.get("ISSUER", TOKEN_URL.removesuffix("/oauth/token"))
API_URL = os.environ["API_URL"]
CLIENT_ID = os.environ["CLIENT_ID"]
SCOPE = os.environ.get("SCOPE")
CALLS = int(os.environ.get("CALLS", "1"))
ROUNDS = int(os.environ.get("ROUNDS", "1"))
PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "1"))

WORTH_A_RETRY = (429, 500, 502, 503, 504)
ATTEMPTS = 5

ADVICE = {
    "invalid_client": "check CLIENT_ID and the secret, or key: it may be wrong, over, or the client disabled",
    "invalid_scope": "ask for less, or have the client granted more",
    "unauthorized_client": "the client was not made for the grant client_credentials",
    "server_error": "the token server cannot answer now, and several attempts did not help",
}


def read_secret() -> str:
    """The secret, from a file or the environment; never from an argument, which `ps` shows."""
    path = os.environ.get("CLIENT_SECRET_FILE")
    return Path(path).read_text().strip() if path else os.environ["CLIENT_SECRET"]


def early_seconds(expires_in: int) -> int:
    """How long before its end a token is replaced: five minutes, or half of a short lifetime."""
    return min(300, expires_in // 2)


def give_up(code: str, description: str) -> None:
    """End with what the token server said, and what to do about it. Neither holds a secret."""
    sys.exit(f"{code}: {description} ({ADVICE.get(code, 'see docs/http.md')})")


def report(number: int, statuses: list[int]) -> None:
    """One line for a round of calls."""
    counted = ", ".join(f"{statuses.count(status)} answered {status}" for status in sorted(set(statuses)))
    print(f"round {number}: {len(statuses)} calls, {counted}", flush=True)
