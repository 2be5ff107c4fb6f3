"""What ``create_app`` composes once and hands to endpoints and commands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, current_app

from app.audit.log import AuditLog
from app.audit.outbox import Outbox
from app.clients.authentication import SecretVerifier
from app.clients.jwks_cache import ClientKeySets
from app.clients.registered_scopes import RegisteredScopes
from app.clients.repository import ClientStore
from app.clients.secrets import ClientSecrets
from app.config.settings import Settings
from app.contracts import Clock, Metadata
from app.keyring.active import CurrentRing
from app.keyring.backends.base import KeyringHome
from app.keyring.service import Keys
from app.keyring.usage_counters import KeyUses
from app.measures import Measures
from app.oauth.authorization_server import TokenServer
from app.oauth.replay_store import ReplayStore
from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocation_feed import RevocationFeed
from app.tokens.revocations import Revocations
from app.tokens.status import Standings

EXTENSION = "tokenhouse"


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one application.

    :param home_at: opens the key ring that lives at a place, a value of ``TOKENHOUSE_KEYRING``.
    :param metadata: the document of RFC 8414, computed from the registries and the settings.
    """

    settings: Settings
    clock: Clock
    clients: ClientStore
    client_secrets: ClientSecrets
    verifier: SecretVerifier
    ring: CurrentRing
    keys: Keys
    key_uses: KeyUses
    outbox: Outbox
    home_at: Callable[[Path | str], KeyringHome]
    server: TokenServer
    tokens: AccessTokenIssuer
    revocations: Revocations
    standings: Standings
    feed: RevocationFeed
    registered_scopes: RegisteredScopes
    audit_log: AuditLog
    metadata: Mapping[str, Any]
    replay: ReplayStore
    key_sets: ClientKeySets
    measures: Measures

    def install(self, app: Flask) -> None:
        """Let commands find these services."""
        app.extensions[EXTENSION] = self


def services() -> Services:
    """The services of the current application."""
    found: Services = current_app.extensions[EXTENSION]
    return found


def installed_version() -> str:
    """Which Tokenhouse this is."""
    try:
        return version("tokenhouse")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One room of ``endpoints.ENDPOINTS``: its routes, and what the metadata says of it.

    :param create_blueprint: the routes.
    :param metadata: members of the metadata, as the settings have them.
    :param authenticates: the member that names it, where clients authenticate there: the metadata says how.
    """

    create_blueprint: Callable[[Services], Blueprint]
    metadata: Callable[[Settings], Metadata]
    authenticates: str | None = None
