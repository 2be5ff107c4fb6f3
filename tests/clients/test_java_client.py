"""Java without a library: ``java.net.http`` fetches tokens, ``java.security`` verifies one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from clients.relay import REFUSED, Harness

pytestmark = pytest.mark.skipif(
    not (shutil.which("java") and shutil.which("javac")), reason="a Java development kit is not installed"
)

PROGRAM = Path(__file__).parent / "java" / "TokenClient.java"


def test_java_gets_tokens_by_basic_by_the_body_and_when_challenged(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    done = subprocess.run(
        ["java", PROGRAM, harness.token_url, harness.jwks_url],
        input=f"{client.client_id}\n{client.secret}\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for way in ("basic", "body", "challenged"):
        harness.check_answer(told.pop(way), client)
    assert told == {"wrongSecret": REFUSED, "wrongStatus": 401, "verified": True}
    raw, wrong = f"{client.client_id}:{client.secret}", f"{client.client_id}:wrong"
    sent = harness.sent()
    assert [request.credentials for request in sent] == [raw, None, None, raw, wrong, None]
    assert "h2c" in {request.headers.get("upgrade") for request in sent}
