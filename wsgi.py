"""The application for gunicorn and for the ``flask`` command line."""

import os
import sys

from flask import Flask

from app import check_start, create_app
from app.settings import StartError
from app.settings_layers import load_settings

APP_LOAD_ERROR = 4
"""The exit status by which a gunicorn worker says that starting it again would not help."""


def _create() -> Flask:
    """Create the application; a server needs a key that may sign, while commands are there to make one."""
    try:
        created = create_app(load_settings())
        if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
            check_start(created)
    except StartError as error:
        sys.stderr.write(f"tokenhouse: {error}\n")
        sys.exit(APP_LOAD_ERROR)
    return created


app = _create()
