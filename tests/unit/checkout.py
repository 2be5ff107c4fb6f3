"""A checkout for tests of settings: a folder with the four files of ``config/``, and what loading from it gives."""

from pathlib import Path

import pytest

from app.config.loader import load_settings
from app.config.settings import Settings
from app.errors import StartError

PEPPER = "p1:" + "x" * 32
ISSUER = "https://tokens.example.com"
ENOUGH = {"TOKENHOUSE_ISSUER": ISSUER, "TOKENHOUSE_SECRET_PEPPERS": PEPPER}


def make_checkout(folder: Path) -> Path:
    """Make the files of ``config/``, all empty."""
    (folder / "config").mkdir()
    for name in ("default", "production", "development", "testing"):
        (folder / "config" / f"{name}.toml").touch()
    return folder


def load(checkout: Path, **variables: str) -> Settings:
    """Load with these variables, given without their prefix, beside those that are required."""
    given = {f"TOKENHOUSE_{name}": value for name, value in variables.items()}
    return load_settings({**ENOUGH, **given}, folder=checkout)


def refusal(checkout: Path, **variables: str) -> str:
    """Load what must be refused; the words of the refusal."""
    with pytest.raises(StartError) as caught:
        load(checkout, **variables)
    return str(caught.value)
