"""CONTRIBUTING.md lists the functions that a token request passes: each exists, and is called in that order."""

import ast
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType

from unit.harness import Harness

PROJECT = Path(__file__).resolve().parents[2]
_STEP = re.compile(r"^[0-9]+\. `([a-z_/]+\.py)`: `([A-Za-z_.]+)` ", re.MULTILINE)


def listed() -> list[tuple[str, str]]:
    return [(path, name) for path, name in _STEP.findall((PROJECT / "CONTRIBUTING.md").read_text())]


def calls_of_a_token_request(harness: Harness) -> list[tuple[str, str]]:
    client, caller = harness.register("a", scope=("read",)), harness.app.test_client()
    seen: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PROJECT / "app"):
            name = frame.f_code.co_qualname.rpartition("<locals>.")[2]
            seen.append((str(path.relative_to(PROJECT)), name))

    for trace in (None, note):
        # The second, when caches are warm.
        sys.setprofile(trace)
        answer = caller.post(
            "/oauth/token", data={"grant_type": "client_credentials"}, headers={"Authorization": client.basic}
        )
        sys.setprofile(None)
        assert answer.status_code == 200
    return seen


def test_the_request_path_in_contributing_is_the_one_that_a_request_takes(harness: Harness) -> None:
    of_the_worker, *steps = listed()
    calls = iter(calls_of_a_token_request(harness))
    assert len(steps) >= 20
    for step in steps:
        assert step in calls, f"{step} is not called there"
    path, name = of_the_worker
    classes = [node for node in ast.parse((PROJECT / path).read_text()).body if isinstance(node, ast.ClassDef)]
    methods = {f"{one.name}.{node.name}" for one in classes for node in one.body if isinstance(node, ast.FunctionDef)}
    assert name in methods


def test_few_files_are_crossed_on_the_way(harness: Harness) -> None:
    files = [path for path, _ in calls_of_a_token_request(harness)]
    assert len(set(files)) <= 23
    assert sum(before != after for before, after in pairwise(files)) <= 45
