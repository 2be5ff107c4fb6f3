"""GNU Wget, which images without curl have."""

import json
import shutil
import subprocess

import pytest
from clients.relay import Harness

pytestmark = pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")


@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "when-challenged"])
def test_wget_gets_a_token_by_basic(harness: Harness, at_once: bool) -> None:  # noqa: FBT001 - pytest passes it by name.
    client = harness.register_awkward_for_raw()
    done = subprocess.run(
        [
            *("wget", "--quiet", "--no-config", "--output-document=-", "--tries=1", "--timeout=20"),
            *(["--auth-no-challenge"] if at_once else []),
            *(f"--user={client.client_id}", f"--password={client.secret}"),
            *("--post-data=grant_type=client_credentials", harness.token_url),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    harness.check_answer(json.loads(done.stdout), client)
    raw = f"{client.client_id}:{client.secret}"
    assert [sent.credentials for sent in harness.sent()] == ([raw] if at_once else [None, raw])
