"""Tokenhouse, a token server for machines: ``create_app`` composes the packages, top to bottom, one call for each."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urlsplit

from flask import Blueprint, Flask

from app.audit.events import Events
from app.audit.log import AuditLog, configure_logging
from app.audit.outbox import DRAIN_SECONDS, Outbox
from app.audit.streams import follow_files
from app.cli import COMMANDS
from app.clients.build import build as build_clients
from app.clients.jwks_cache import POLL_SECONDS as JWKS_POLL_SECONDS
from app.clients.last_used import FLUSH_SECONDS
from app.clients.registered_scopes import POLL_SECONDS as SCOPES_POLL_SECONDS
from app.clients.secrets import ClientSecrets
from app.config.settings import Settings
from app.config.values import PROJECT_FOLDER
from app.database import circuit_breaker
from app.database.build import build as build_database
from app.http.application import Application
from app.keyring.active import POLL_SECONDS
from app.keyring.build import build as build_keys
from app.oauth.authorization_server import AuthorizationServer
from app.oauth.build import build as build_oauth
from app.oauth.client_auth import METHODS
from app.oauth.endpoints import ENDPOINTS
from app.oauth.grants import GRANTS
from app.oauth.metadata import describe_server
from app.oauth.policy import Policy
from app.observability import health_endpoint
from app.observability.instrumentation import Instrumentation
from app.operations.background_jobs import PeriodicTask, Scheduler
from app.services import Services
from app.types import Clock

EXPIRY_POLL_SECONDS = 60.0
"""How often a worker checks for secrets whose expiry is to be reported. Each is reported once a day."""

DELETE_SECONDS = 60.0
"""How often a worker deletes expired rows."""

REPLAY_POLL_SECONDS = 1.0
"""How often a worker checks whether the replay store responds, and whether it has forgotten anything."""


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
    audit_log = AuditLog(settings.log_format, clock, is_required=settings.audit_log_required)
    events = Events()
    events.subscribe(instrumentation.timed("log", audit_log))
    database = build_database(app, settings, span=instrumentation.span)
    outbox = Outbox(database.engine, clock)
    keys = build_keys(settings, database.engine, events, clock)
    events.subscribe(instrumentation)
    with_mac = {method.name for method in METHODS if method.uses_secret_as_key}
    clients = build_clients(settings, database, outbox, clock, methods_with_mac=with_mac)
    metadata = describe_server(settings)
    server = AuthorizationServer(
        # Clients are rows of the Flask-SQLAlchemy model database.models.ClientRow.
        query_client=clients.authenticator.query_client,
        origin="{0.scheme}://{0.netloc}".format(urlsplit(settings.issuer)),
        policy=Policy(settings.access_token_lifetime, settings.default_audience),
        events=events,
        clock=clock,
        timed=instrumentation.timed,
    )
    oauth = build_oauth(settings, server, metadata, database, clients, keys.active, clock, span=instrumentation.span)
    server.register_token_generator("default", oauth.issuer)  # type: ignore[arg-type]  # The stubs want one class.
    for method in METHODS:
        server.register_client_auth_method(method.name, method(oauth.client_auth))
    for grant in GRANTS:  # ClientCredentialsGrant.
        server.register_grant(grant)
    for endpoint in ENDPOINTS:
        if endpoint.registered:
            server.register_endpoint(endpoint.registered(oauth))
    services = Services(settings, clock, keys, clients, oauth, audit_log, outbox)
    services.install(app)
    app.extensions["instrumentation"] = instrumentation
    _scheduler(services, events).install(app)
    _mount(app, services)
    app.cli.commands.update({str(command.name): command for command in COMMANDS})
    app.serve_directly()
    return app


def _scheduler(services: Services, events: Events) -> Scheduler:
    """Return the periodic tasks of a worker."""
    clients, keys, oauth = services.clients, services.keys, services.oauth
    emit_expiring = partial(_emit_expiring, clients.secrets, events)
    return Scheduler(
        PeriodicTask("Polling the key ring", POLL_SECONDS, keys.active.refresh, on_the_second=True),
        PeriodicTask("Checking the audit log", POLL_SECONDS, services.audit_log.poll),
        PeriodicTask("Checking whether logs were moved away", POLL_SECONDS, follow_files),
        PeriodicTask(
            "Writing the events of commands",
            DRAIN_SECONDS,
            partial(services.outbox.drain, services.audit_log.write_past),
        ),
        PeriodicTask("Probing the database", circuit_breaker.POLL_SECONDS, clients.authenticator.poll),
        PeriodicTask("Writing the counts of signed tokens", FLUSH_SECONDS, keys.usage.flush, at_exit=True),
        PeriodicTask("Writing when secrets were used", FLUSH_SECONDS, clients.last_used.flush, at_exit=True),
        PeriodicTask(
            "Scanning clients' scopes",
            SCOPES_POLL_SECONDS,
            clients.registered_scopes.poll,
            at_start=True,
            on_the_second=True,
        ),
        PeriodicTask("Checking the replay store", REPLAY_POLL_SECONDS, oauth.replay_store.poll, at_start=True),
        PeriodicTask("Fetching clients' keys", JWKS_POLL_SECONDS, clients.jwks_cache.poll),
        PeriodicTask("Deleting expired assertions", DELETE_SECONDS, oauth.replay_store.delete_expired),
        PeriodicTask("Deleting expired revocations", DELETE_SECONDS, oauth.revocations.delete_expired),
        PeriodicTask("Finding secrets that expire", EXPIRY_POLL_SECONDS, emit_expiring),
    )


def _emit_expiring(client_secrets: ClientSecrets, events: Events) -> None:
    for event in client_secrets.claim_expiring():
        events.emit(event)


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
