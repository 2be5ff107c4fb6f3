"""Time of a rate limit and a quota per token, and memory of their counts, in one process without Redis.

Run it on a quiet machine: `.venv/bin/python bench/limits.py 2>/dev/null`; migrations log to standard error.
"""

import sys
import tempfile
import tracemalloc
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import SettableClock
from timing import microseconds
from unit.harness import open_harness

from app.oauth.rate_limiter import RateLimiter
from app.oauth.rate_limits import MOST_CLIENTS
from app.types import Rate

CALLS = 200_000
RATE = {"ratelimit_enabled": "true", "ratelimit_tokens": "999999999/minute"}
SETTINGS = {
    "no limit": {"ratelimit_enabled": "false"},
    "a rate": RATE,
    "a rate and a quota": RATE | {"token_quota": "999999999", "token_quota_mode": "enforce"},
}


def per_token() -> None:
    """Print what counting one token costs."""
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder, open_harness(Path(folder), SettableClock(), **settings) as made:
            made.register("a-client")
            with made.app.app_context():
                client = made.verifier.query_client("a-client")
            count = partial(made.services.oauth.server.limits.count_request, "token", client)
            print(f"{name:>20}  {microseconds(count, CALLS):5.2f} µs per token")


def memory() -> None:
    """Print what a process's windows take."""
    limiter, rate = RateLimiter(MOST_CLIENTS), Rate(6_000, 60)
    tracemalloc.start()
    for number in range(MOST_CLIENTS):
        limiter.take("tokens", f"client-{number:024}", rate)
    print(f"{MOST_CLIENTS:>20,}  windows take {tracemalloc.get_traced_memory()[0] / 2**20:.1f} MiB")


if __name__ == "__main__":
    per_token()
    memory()
