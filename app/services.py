"""What ``create_app`` builds once, grouped by concern, for commands, health checks and metrics."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from flask import Flask, current_app

from app.apis.build import ApiServices
from app.audit.build import AuditServices
from app.clients.build import ClientServices
from app.config.settings import Settings
from app.keyring.build import KeyServices
from app.oauth.services import OAuthServices
from app.tokens.build import TokenServices
from app.types import Clock

EXTENSION = "tokenhouse"
"""The name of :class:`Services` in ``Flask.extensions``."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one application."""

    settings: Settings
    clock: Clock
    audit: AuditServices
    keys: KeyServices
    clients: ClientServices
    apis: ApiServices
    tokens: TokenServices
    oauth: OAuthServices

    def install(self, app: Flask) -> None:
        """Make these the services of ``app``."""
        app.extensions[EXTENSION] = self


def services() -> Services:
    """Return the services of the current application."""
    found: Services = current_app.extensions[EXTENSION]
    return found


def installed_version() -> str:
    """Return the version of Tokenhouse that runs."""
    try:
        return version("tokenhouse")
    except PackageNotFoundError:
        return "unknown"
