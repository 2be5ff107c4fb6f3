"""The WSGI application, for gunicorn and for the ``flask`` command line; as a program, the server of ``make run``."""

import os
import sys

from flask import Flask

from app import create_app
from app.config.loader import load_settings
from app.errors import StartError

START_ERROR = 4
"""The exit status of a command whose settings are wrong."""


def _create() -> Flask:
    """Create the application. A server needs a key that may sign; commands are there to create one."""
    if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
        from app.operations.gunicorn_hooks import create_served_app  # noqa: PLC0415 - A command has no use for gunicorn.

        return create_served_app(create_app)
    try:
        return create_app(load_settings())
    except StartError as error:
        sys.stderr.write(f"tokenhouse: {error}\n")
        sys.exit(START_ERROR)


if __name__ == "__main__":
    from app.cli.development import main

    main(create_app)
else:
    app = _create()
