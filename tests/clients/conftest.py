"""What the tests with real clients share: one server whose issuer is its own address."""

from collections.abc import Iterator

import pytest
from clients.relay import House, running_house


@pytest.fixture(scope="session")
def served_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture
def house(served_house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A served Tokenhouse, with an empty record of what clients sent. No client goes through a proxy to it."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    served_house.sent()
    return served_house
