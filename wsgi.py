"""The application for gunicorn and for the ``flask`` command line."""

import os
import sys

from flask import Flask

from app import create_app
from app.serving import create_served_app
from app.settings import StartError
from app.settings_layers import load_settings


def _create() -> Flask:
    """Create the application; a server needs a key that may sign, while commands are there to make one."""
    if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
        return create_served_app()
    try:
        return create_app(load_settings())
    except StartError as error:
        sys.exit(f"tokenhouse: {error}")


app = _create()
