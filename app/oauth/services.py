"""What the endpoints work with, and the shape of an endpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Blueprint

from app.clients.registered_scopes import RegisteredScopes
from app.config.settings import Settings
from app.keyring.active import ActiveRing
from app.oauth.authorization_server import TokenServer
from app.oauth.replay_store import ReplayStore
from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocation_feed import RevocationFeed
from app.tokens.revocations import Revocations
from app.tokens.status import TokenStatuses
from app.types import Clock, Metadata


@dataclass(frozen=True, slots=True)
class OAuthServices:
    """The parts of the protocol.

    :param active_keys: the key ring that this process signs and publishes with.
    :param metadata: the document of RFC 8414, without ``scopes_supported``, which changes.
    """

    settings: Settings
    clock: Clock
    server: TokenServer
    issuer: AccessTokenIssuer
    statuses: TokenStatuses
    revocations: Revocations
    revocation_feed: RevocationFeed
    replay_store: ReplayStore
    active_keys: ActiveRing
    registered_scopes: RegisteredScopes
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of ``endpoints.ENDPOINTS``: its routes, and what the metadata says of it.

    :param create_blueprint: makes the routes.
    :param metadata: the members that the endpoint adds to the metadata.
    :param authenticates: the metadata member that names the endpoint, if clients authenticate there; the metadata then
        lists their methods too.
    """

    create_blueprint: Callable[[OAuthServices], Blueprint]
    metadata: Callable[[Settings], Metadata]
    authenticates: str | None = None
