"""What the tests of the examples share: one stage."""

from collections.abc import Iterator

import pytest
from examples.stage import EndpointResponse, Stage, open_stage


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture
def stage(opened: Stage) -> Stage:
    """With nothing answered yet."""
    opened.front.answered = EndpointResponse()
    return opened
