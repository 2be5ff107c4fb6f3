"""Authentication by a secret, as the tests of clients use it."""

import pytest
from support.server import NewClient
from unit.harness import Harness

from app.errors import InvalidClient
from app.types import Authentication, Credentials

BASIC, POST = "client_secret_basic", "client_secret_post"
SECRET = "an-imported-secret-of-some-length"
OTHER_SECRET = "another-imported-secret-of-a-length"


def credentials(client: NewClient) -> Credentials:
    return Credentials(client.client_id, client.secret)


def verify(harness: Harness, *candidates: Credentials, method: str = BASIC) -> Authentication:
    with harness.app.app_context():
        return harness.verifier.verify_secret(candidates, method)


def refusal(harness: Harness, *candidates: Credentials, method: str = BASIC) -> tuple[str, str | None]:
    """The reason for the log, and the client that is named there."""
    with pytest.raises(InvalidClient) as caught:
        verify(harness, *candidates, method=method)
    assert caught.value.description == "Client authentication failed."
    return caught.value.reason, caught.value.client_id
