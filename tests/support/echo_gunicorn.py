"""The project's gunicorn configuration for another application: all but the check of Tokenhouse's settings and keys."""

from pathlib import Path
from runpy import run_path

_PROJECT = Path(__file__).resolve().parent.parent.parent
_VALUES = run_path(str(_PROJECT / "config" / "gunicorn.py"))

globals().update({name: value for name, value in _VALUES.items() if not name.startswith("_") and name != "on_starting"})
chdir = pythonpath = str(_PROJECT)
