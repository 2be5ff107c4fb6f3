"""How far a reader must travel to follow one token request: files that it crosses, and moves between them.

``bench/moves.py`` serves one warm token request in this process and lists each function of ``app/`` in the order of
the calls. A move is a call whose function is in another file than the one called before it.
"""

import argparse
import base64
import os
import sys
import tempfile
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from conftest import SettableClock  # noqa: E402 - The tests are no package.
from harness import open_harness  # noqa: E402

OURS = str(ROOT / "app") + os.sep


def calls_of_a_token() -> list[tuple[str, str]]:
    """File below ``app/`` and function of each call of one token request, in order."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS):
            calls.append((code.co_filename.removeprefix(OURS), code.co_qualname))

    with tempfile.TemporaryDirectory() as folder:
        clock = SettableClock()
        clock.now = datetime.now(UTC)
        with open_harness(Path(folder), clock) as harness:
            client = harness.register(scope=("a", "b"))
            basic = base64.b64encode(f"{client.client_id}:{client.secret}".encode()).decode()
            request = {
                "headers": {"Authorization": f"Basic {basic}"},
                "data": {"grant_type": "client_credentials", "scope": "a"},
            }
            caller = harness.app.test_client()
            caller.post("/oauth/token", **request)  # The first fills caches.
            sys.setprofile(note)
            try:
                answer = caller.post("/oauth/token", **request)
            finally:
                sys.setprofile(None)
    if answer.status_code != HTTPStatus.OK:
        raise SystemExit(f"no token: {answer.text}")
    return calls


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", action="store_true", help="list the calls too")
    options = parser.parse_args()
    calls = calls_of_a_token()
    visits = [(file, [function for _, function in group]) for file, group in groupby(calls, key=lambda call: call[0])]
    if options.calls:
        for file, functions in visits:
            print(f"  {file:<36} {', '.join(functions)}")
    print(f"{len({file for file, _ in calls})} files, {len(visits) - 1} moves between them, {len(calls)} calls")


if __name__ == "__main__":
    main()
