"""An application in this process, for unit tests: settings, database, keys and a clock that stands still."""

import contextlib
import logging
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from click.testing import Result
from conftest import SettableClock
from flask import Flask
from sqlalchemy import event
from support.keys import add_key
from support.server import NewClient, environment_for, migrate

from app import create_app
from app.clients.authentication import ClientAuthenticator
from app.clients.fields import ClientFields
from app.clients.repository import ClientRepository
from app.config.loader import load_settings
from app.config.settings import Settings
from app.database.models import db
from app.services import Services


@dataclass(frozen=True)
class Harness:
    """An application with its clock, migrated and with a signing key unless made otherwise."""

    app: Flask
    clock: SettableClock
    settings: Settings
    folder: Path

    @property
    def services(self) -> Services:
        """The services of :attr:`app`."""
        found: Services = self.app.extensions["tokenhouse"]
        return found

    @property
    def store(self) -> ClientRepository:
        """Management of clients. Needs an application context."""
        return self.services.clients.repository

    @property
    def verifier(self) -> ClientAuthenticator:
        """Authentication by secret."""
        return self.services.clients.authenticator

    def register(
        self,
        client_id: str | None = None,
        *,
        secret: str | None = None,
        expires_after: timedelta | None = None,
        **fields: Any,
    ) -> NewClient:
        """Make a client."""
        fields = {"client_name": "A service", **fields}
        with self.app.app_context():
            row, made = self.store.register(
                ClientFields(**fields), client_id=client_id, secret=secret, secret_expires_after=expires_after
            )
            assert made is not None
            return NewClient(row.client_id, made.secret)

    def run(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        """Run ``flask …`` in this process."""
        return self.app.test_cli_runner().invoke(args=list(arguments), input=stdin)


@contextlib.contextmanager
def logging_as_it_was() -> Iterator[None]:
    """Give pytest its handlers back: an application sends all that is logged to standard error."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def open_harness(
    folder: Path, clock: SettableClock, *, migrated: bool = True, with_key: bool = True, **settings: str
) -> Iterator[Harness]:
    """Build an application in ``folder``. ``settings`` are variables without their prefix, in lower case."""
    overrides = {f"TOKENHOUSE_{name.upper()}": value for name, value in settings.items()}
    overrides.setdefault("TOKENHOUSE_SECRET_PEPPERS", f"p1:{secrets.token_urlsafe(32)}")
    with logging_as_it_was():
        loaded = load_settings(environment_for(folder, **overrides))
        app = create_app(loaded, clock=clock)
        harness = Harness(app, clock, loaded, folder)
        with app.app_context():
            if migrated:
                migrate()
            if with_key:
                add_key(harness.services.keys.manager.backend, published_at=clock(), signs_from=clock())
        try:
            yield harness
        finally:
            app.extensions["scheduler"].stop()
            with app.app_context():
                db.session.remove()
                db.engine.dispose()


@contextlib.contextmanager
def statements(harness: Harness) -> Iterator[list[tuple[str, Any]]]:
    """Every statement of this thread that reaches the driver within, with its parameters.

    Others are of periodic tasks.
    """
    seen: list[tuple[str, Any]] = []
    here = threading.get_ident()

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if threading.get_ident() == here:
            seen.append((statement, parameters))

    with harness.app.app_context():
        event.listen(db.engine, "before_cursor_execute", note)
        try:
            yield seen
        finally:
            event.remove(db.engine, "before_cursor_execute", note)
