"""Tokenhouse, a token server for machines: ``create_app`` composes the packages, top to bottom, one call for each."""

from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

from flask import Blueprint, Flask

from app.apis.build import build as build_apis
from app.audit.build import build as build_audit
from app.audit.log import configure_logging
from app.cli import COMMANDS
from app.clients.build import build as build_clients
from app.config.settings import Settings
from app.config.values import PROJECT_FOLDER
from app.database.build import build as build_database
from app.http.application import Application
from app.keyring.build import build as build_keys
from app.oauth.authorization_server import AuthorizationServer
from app.oauth.build import build as build_oauth
from app.oauth.build import build_limits
from app.oauth.client_auth import METHODS
from app.oauth.client_certificates import ClientCertificates
from app.oauth.endpoints import ENDPOINTS
from app.oauth.grants import GRANTS
from app.oauth.policy import Policy
from app.oauth.sender_constraints import SENDER_CONSTRAINTS
from app.observability import health_endpoint
from app.observability.instrumentation import Instrumentation
from app.operations.build import build as build_scheduler
from app.services import Services
from app.tokens.build import build as build_tokens
from app.types import Clock


def utc_now() -> datetime:
    """Return the current time: the clock of a real application."""
    return datetime.now(UTC)


def create_app(settings: Settings, *, clock: Clock = utc_now) -> Flask:
    """Compose the application.

    The key ring and the database are not touched yet, so that commands can create them. A server checks them at its
    start (``operations.gunicorn_hooks``).
    """
    configure_logging(settings)
    app = Application("tokenhouse", settings.trusted_proxies, root_path=str(PROJECT_FOLDER))
    instrumentation = Instrumentation()
    database = build_database(app, settings, traced_by=instrumentation)
    audit = build_audit(settings, database.engine, clock, timed=instrumentation.timed)
    keys = build_keys(settings, database.engine, audit.events, clock)
    audit.events.subscribe(instrumentation)
    with_mac = {method.name for method in METHODS if method.uses_secret_as_key}
    clients = build_clients(settings, database, audit, clock, methods_with_mac=with_mac)
    apis = build_apis(settings, database, audit, clock)
    tokens = build_tokens(settings, database, keys.active, clock)
    server = AuthorizationServer(
        # Clients are rows of the Flask-SQLAlchemy model database.models.ClientRow.
        query_client=clients.authenticator.query_client,
        origin="{0.scheme}://{0.netloc}".format(urlsplit(settings.issuer)),
        policy=Policy(
            settings.access_token_lifetime,
            settings.default_audience,
            settings.signing_alg,
            reads_audience=settings.audience_parameter,
        ),
        events=audit.events,
        clock=clock,
        limits=build_limits(settings, database, clients, clock),
        certificates=ClientCertificates(settings),
        timed=instrumentation.timed,
    )
    oauth = build_oauth(settings, server, database, keys, clients, apis, tokens, clock)
    server.record_api_use = apis.usage.record
    server.register_token_generator("default", tokens.issuer)
    for method in METHODS:
        server.register_client_auth_method(method.name, method(oauth.client_auth))
    for constraint in SENDER_CONSTRAINTS:
        server.register_sender_constraint(constraint(oauth))
    for grant in GRANTS:  # ClientCredentialsGrant.
        server.register_grant(grant)
    for endpoint in ENDPOINTS:
        if endpoint.registered:
            server.register_endpoint(endpoint.registered(oauth))
    services = Services(settings, clock, audit, keys, clients, apis, tokens, oauth)
    services.install(app)
    app.extensions["instrumentation"] = instrumentation
    build_scheduler(services, database.engine).install(app)
    _mount(app, services)
    app.cli.commands.update({str(command.name): command for command in COMMANDS})
    app.serve_directly()
    return app


def _mount(app: Flask, services: Services) -> None:
    """Serve every path at the root and, when the issuer has a path, below it: a proxy may remove the path or not."""
    issuer_path = urlsplit(services.settings.issuer).path
    for blueprint in _blueprints(services):
        app.register_blueprint(blueprint)
        if issuer_path:
            app.register_blueprint(blueprint, url_prefix=issuer_path, name=f"{blueprint.name}-at-issuer")


def _blueprints(services: Services) -> Iterator[Blueprint]:
    yield from (endpoint.create_blueprint(services.oauth) for endpoint in ENDPOINTS)
    yield health_endpoint.create_blueprint(services)
