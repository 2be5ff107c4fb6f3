"""The clocks of ``make profile`` are put around what is there."""

import ast
import functools
import importlib
from pathlib import Path

import pytest

STAGES_FILE = Path(__file__).resolve().parents[2] / "bench" / "stages.py"


def _targets() -> list[str]:
    module = ast.parse(STAGES_FILE.read_text())
    (stages,) = [node.value for node in module.body if isinstance(node, ast.Assign) and node.targets[0].id == "STAGES"]  # type: ignore[attr-defined]
    return [target for _, target in ast.literal_eval(stages)]


@pytest.mark.parametrize("target", _targets())
def test_a_stage_of_the_profile_is_there(target: str) -> None:
    module, _, path = target.partition(":")
    found = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    assert callable(found) or isinstance(found, functools.cached_property)
