"""What the tests with real clients share: one server whose issuer is its own address."""

from collections.abc import Iterator

import pytest
from clients.relay import Harness, running_house


@pytest.fixture(scope="session")
def served_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with running_house(tmp_path_factory.mktemp("house")) as harness:
        yield harness


@pytest.fixture
def harness(served_house: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """A served Tokenhouse, with an empty record of what clients sent. No client goes through a proxy to it."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    served_house.sent()
    return served_house
