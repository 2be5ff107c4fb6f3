"""Tokenhouse: a token server for machines. The composition, top to bottom; the only file that sees every room."""

from datetime import UTC, datetime
from urllib.parse import urlsplit

from flask import Flask
from flask_migrate import Migrate

from app import database, web
from app.cli import COMMANDS
from app.client_auth import METHODS
from app.client_secrets import SecretDigester
from app.clients import ClientStore
from app.contracts import Clock, Metadata
from app.endpoints import ENDPOINTS
from app.events import Events
from app.grants import GRANTS
from app.issuer import AccessTokenIssuer
from app.keyring.current import CurrentRing
from app.keyring.file import FileKeyring
from app.logs import AuditLog, configure_logging
from app.models import db
from app.policy import Policy
from app.server import TokenServer
from app.services import Services
from app.settings import PROJECT_FOLDER, Settings


def utc_now() -> datetime:
    """The clock of a real application."""
    return datetime.now(UTC)


def create_app(settings: Settings, *, clock: Clock = utc_now) -> Flask:
    """Put the application together.

    The key ring and the database are not touched yet, so that commands can make them. A server checks them at its
    start, with :func:`check_start`.
    """
    configure_logging(settings)
    app = Flask("tokenhouse", root_path=str(PROJECT_FOLDER), static_folder=None)
    web.install(app)
    database.install(app, settings)
    Migrate(app, db, directory=str(PROJECT_FOLDER / "migrations"))

    events = Events()
    events.subscribe(AuditLog(settings.log_format, clock))
    passphrase = settings.keyring_passphrase
    ring = CurrentRing(FileKeyring(settings.keyring, passphrase.get_secret_value() if passphrase else None))
    with app.app_context():
        clients = ClientStore(db.engine, db.session, SecretDigester(settings.secret_peppers), clock)
    server = TokenServer(
        grants=GRANTS,
        methods=tuple(method(clients) for method in METHODS),
        tokens=AccessTokenIssuer(settings.issuer, ring, clock),
        policy=Policy(settings.access_token_lifetime, settings.default_audience),
        events=events,
    )
    services = Services(settings, clock, clients, ring, server, describe_server(settings))
    services.install(app)
    _mount_endpoints(app, services)
    for command in COMMANDS:
        app.cli.add_command(command)
    return app


def check_start(app: Flask) -> None:
    """Refuse to serve without a key that may sign.

    :raises StartError: one line that says what is wrong.
    """
    services: Services = app.extensions["tokenhouse"]
    services.ring().signing_key(services.clock())


def describe_server(settings: Settings) -> Metadata:
    """Metadata of RFC 8414, from the registries and the settings alone.

    The members that only OpenID Connect Discovery asks for are there because many verifiers read nothing else. There is
    no authorization endpoint, so no response type returns anything: ``none`` says so where an empty list may not stand
    (section 3.2).
    """
    metadata: Metadata = {"issuer": settings.issuer}
    for endpoint in ENDPOINTS:
        metadata |= endpoint.metadata(settings.issuer)
    return metadata | {
        "grant_types_supported": [grant.GRANT_TYPE for grant in GRANTS],
        "token_endpoint_auth_methods_supported": [method.name for method in METHODS],
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }


def _mount_endpoints(app: Flask, services: Services) -> None:
    """Serve every path at the root and, when the issuer has a path, below it: a proxy may take the path off or not."""
    issuer_path = urlsplit(services.settings.issuer).path
    for endpoint in ENDPOINTS:
        blueprint = endpoint.create_blueprint(services)
        app.register_blueprint(blueprint)
        if issuer_path:
            app.register_blueprint(blueprint, url_prefix=issuer_path, name=f"{blueprint.name}-at-issuer")
