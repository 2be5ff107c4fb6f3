"""``make run``: prepares a developer's machine at the first start, then runs gunicorn as in production.

It creates what is missing and keeps what exists: settings in ``.env``, the database, a signing key, the client
``demo``.
"""

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from flask import Flask
from flask_migrate import upgrade
from gunicorn.app.wsgiapp import WSGIApplication

from app.cli.clients import curl_line
from app.clients.fields import ClientFields
from app.config.loader import CONFIG_NAME, development_issuer, is_text, load_settings
from app.config.settings import SETTING_NAMES, Settings
from app.config.values import PROJECT_FOLDER, parse_issuer
from app.database.models import db
from app.errors import ManagementError, StartError
from app.keyring.backends.file import write_private_file
from app.operations.doctor import DEMO_CLIENT
from app.services import services

DEMO_SCOPES = ("read", "write")
DEFAULT_PORT, DEFAULT_METRICS_PORT, LARGEST_PORT = 8080, 9464, 65535
_ISSUER, _METRICS = "TOKENHOUSE_ISSUER", "TOKENHOUSE_METRICS_ADDRESS"
_MADE_ONCE = {"TOKENHOUSE_SECRET_PEPPERS": "dev1", "TOKENHOUSE_ENCRYPTION_KEYS": "dev1"}
"""Random settings, with the id of the key that is generated."""
_MARKER = "# What the last `make run` was given; written anew by each."


def main(create_app: Callable[[Settings], Flask]) -> None:
    """Prepare and serve."""
    os.environ.setdefault(CONFIG_NAME, "development")
    os.umask(0o077)
    try:
        if os.environ[CONFIG_NAME] == "development":
            write_environment_file(PROJECT_FOLDER / ".env", os.environ)
        settings = load_settings()
        app = create_app(settings)
        with app.app_context():
            prepare(settings)
    except (StartError, ManagementError, OSError) as error:
        sys.exit(f"tokenhouse: {error}")
    DevelopmentServer(app, settings).run()


def write_environment_file(path: Path, environment: Mapping[str, str]) -> None:
    """Write the settings of this start to ``.env``, so that ``flask`` by hand uses the same.

    Below a marker line are the settings of the last run, rewritten each time. Above it are random ones, created
    once, and what people have written there.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "# Read by `make run` and `flask`; ignored by git.\n"
    above = text.partition(_MARKER)[0].rstrip("\n")
    own = dotenv_values(stream=StringIO(above), interpolate=False)
    for name, key_id in _MADE_ONCE.items():
        if not own.get(name) and not environment.get(name):
            above += f"\n{name}={key_id}:{secrets.token_urlsafe(32)}"
    given = {name: environment[name] for name in SETTING_NAMES if environment.get(name)}
    if not own.get(_ISSUER) and _ISSUER not in given:
        given[_ISSUER] = _issuer_of(environment.get("HOST", ""), environment.get("PORT", ""))
    if not own.get(_METRICS) and _METRICS not in environment and (address := _metrics_address(environment)):
        given[_METRICS] = address
    for name, value in given.items():
        if "\r" in value or not is_text(value):
            raise StartError(f"{name} must be UTF-8 text without a carriage return to be kept in .env")
    lines = [above, "", _MARKER, *(f"{name}={_quoted(value)}" for name, value in given.items()), ""]
    if (written := "\n".join(lines)) != text:
        write_private_file(path, written.encode())


def _issuer_of(host: str, port: str) -> str:
    issuer = development_issuer(host, port)
    try:
        return parse_issuer(issuer)
    except ValueError:
        raise StartError(
            f"HOST and PORT make {issuer} the issuer, which cannot be: PORT must be a number up to 65535 and HOST this "
            f"machine alone (plain http is for loopback); for others, set {_ISSUER} to an https URL"
        ) from None


def _metrics_address(environment: Mapping[str, str]) -> str | None:
    """Return where metrics are served if ``PORT`` is not the default: two servers on a machine need two addresses."""
    port = environment.get("PORT", "")
    if not port.isdecimal() or int(port) == DEFAULT_PORT:
        return None
    beside = int(port) - DEFAULT_PORT + DEFAULT_METRICS_PORT
    return f"127.0.0.1:{beside if beside <= LARGEST_PORT else int(port) - 1}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def prepare(settings: Settings) -> None:
    """Upgrade the database, and create a signing key if there is none."""
    upgrade()
    here = services()
    if here.keys.manager.backend.is_empty():
        here.keys.manager.generate()
        print(f"Made a signing key and its standby in {settings.keyring}.")  # noqa: T201 - Talk to a person.
    db.engine.dispose()


class DevelopmentServer(WSGIApplication):
    """gunicorn with the project's settings and a greeting once it listens."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._flask_app = app
        self._settings = settings
        sys.argv = ["gunicorn", "--config", str(PROJECT_FOLDER / "config" / "gunicorn.py"), "wsgi:app"]
        super().__init__("%(prog)s [OPTIONS] [APP_MODULE]")

    def load_config(self) -> None:
        """Add the greeting to the settings of ``config/gunicorn.py``."""
        super().load_config()
        self.cfg.set("when_ready", self._greet)

    def _greet(self, _arbiter: Any) -> None:
        """Print how to get a token. Only now: a secret that is printed before the port is ours could be lost."""
        with self._flask_app.app_context():
            print(greeting(self._settings), flush=True)  # noqa: T201 - Talk to a person.
            db.session.remove()
            # No connection may be shared with the workers that are forked from here.
            db.engine.dispose()


def greeting(settings: Settings) -> str:
    """Create the demo client in development, and return what to do next."""
    here = services()
    endpoint = here.oauth.metadata["token_endpoint"]
    if settings.config == "development" and not here.clients.repository.list_all():
        try:
            _, secret = here.clients.repository.register(
                ClientFields(client_name="Demo", scope=DEMO_SCOPES, description="Made by the first `make run`."),
                client_id=DEMO_CLIENT,
            )
        except ManagementError:
            secret = None
        if secret:
            line = curl_line(endpoint, DEMO_CLIENT, secret.secret)
            return (
                f"\nTokenhouse serves {settings.issuer}\n\nFetch a token (the secret is shown this once):\n\n  {line}\n"
            )
    make = '.venv/bin/flask clients create "My service" --scope "read write"'
    return f"\nTokenhouse serves {settings.issuer}\n\nMake another client:\n\n  {make}\n"
