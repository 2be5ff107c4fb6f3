"""Tokenhouse: a token server for machines. The composition, top to bottom; the only file that sees every room."""

import logging
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urlsplit

from flask import Flask

from app import lines
from app.audit.events import Events
from app.audit.log import AuditLog, configure_logging
from app.audit.outbox import TELL_SECONDS, Outbox
from app.background import Background, Job
from app.cli import COMMANDS
from app.clients.authentication import SecretVerifier
from app.clients.encrypted_secrets import ReadableSecrets
from app.clients.jwks_cache import LOOK_SECONDS as LOOK_AT_KEYS_SECONDS
from app.clients.jwks_cache import ClientKeySets
from app.clients.last_used import FLUSH_SECONDS, UseMarks
from app.clients.lookup import ClientLookup
from app.clients.registered_scopes import LOOK_SECONDS as LOOK_AT_SCOPES_SECONDS
from app.clients.registered_scopes import RegisteredScopes
from app.clients.repository import ClientStore
from app.clients.secret_digests import SecretDigester
from app.clients.secrets import ClientSecrets
from app.config.settings import Settings
from app.config.values import PROJECT_FOLDER
from app.contracts import Clock, Metadata
from app.database import circuit_breaker, engine
from app.database.models import db
from app.database.prepared_query import KeptConnections
from app.endpoints import ENDPOINTS
from app.http.application import Application
from app.http.safe_fetch import Fetcher
from app.keyring.active import LOOK_SECONDS, CurrentRing
from app.keyring.backends.registry import open_home
from app.keyring.service import Keys, rules_for
from app.keyring.usage_counters import KeyUses
from app.keyring.validation import faults
from app.measures import Measures, TimedMethod, TimedTokens
from app.oauth.authorization_server import TokenServer
from app.oauth.client_auth import METHODS
from app.oauth.client_auth.dependencies import Doors, rules_of
from app.oauth.grants import GRANTS
from app.oauth.policy import Policy
from app.oauth.replay_store import ReplayStore, SqlReplay
from app.services import Services
from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocation_feed import RevocationFeed
from app.tokens.revocations import Revocations
from app.tokens.status import Standings

log = logging.getLogger(__name__)

_READ_BY = {method.name for method in METHODS if method.reads_secrets}
"""The methods whose clients' secrets are kept readable."""

EXPIRY_LOOK_SECONDS = 60.0
"""How often a worker looks whether a secret's end is to be told. Each is told once a day, by one of all workers."""


FORGET_SECONDS = 60.0
"""How often a worker removes what was to be remembered for a while, and is over."""


LOOK_AT_REPLAY_SECONDS = 1.0
"""How often a worker looks whether the store of used assertions answers, and has forgotten nothing."""


def utc_now() -> datetime:
    """The clock of a real application."""
    return datetime.now(UTC)


def create_app(settings: Settings, *, clock: Clock = utc_now) -> Flask:
    """Put the application together.

    The key ring and the database are not touched yet, so that commands can make them. A server checks them at its
    start, with :func:`check_start`.
    """
    configure_logging(settings)
    app = Application("tokenhouse", settings.trusted_proxies, root_path=str(PROJECT_FOLDER))
    engine.install(app, settings)

    events = Events()
    audit_log = AuditLog(settings.log_format, clock, is_required=settings.audit_log_required)
    measures = Measures()
    events.subscribe(measures.timed("log", audit_log))
    with app.app_context():
        home_at = partial(open_home, settings=settings, engine=db.engine)
        digester = SecretDigester(settings.secret_peppers)
        database_gate, connections = circuit_breaker.DatabaseGate(measures.span), KeptConnections(db.engine)
        outbox = Outbox(db.engine, clock)
        doors = _open_doors(settings, connections, digester, database_gate, clock, outbox, measures)
        revocations = Revocations(db.engine, connections, database_gate, clock)
        client_secrets = ClientSecrets(db.engine, db.session, digester, clock, outbox, doors.readable, _READ_BY)
        clients = ClientStore(db.session, client_secrets, clock)
        key_uses = KeyUses(db.engine, clock)
        registered_scopes = RegisteredScopes(db.engine, published=settings.publish_scopes)
    events.subscribe(key_uses)
    events.subscribe(measures)
    home = home_at(settings.keyring)
    keys = Keys(home, rules_for(settings, home), clock)
    ring = CurrentRing(home, keys.rules, events, clock)
    tokens = AccessTokenIssuer(settings.issuer, ring.signing_key, clock)
    services = Services(
        settings=settings,
        clock=clock,
        clients=clients,
        client_secrets=client_secrets,
        verifier=doors.secrets,
        ring=ring,
        keys=keys,
        key_uses=key_uses,
        outbox=outbox,
        home_at=home_at,
        server=_open_server(settings, doors, tokens, events, measures),
        tokens=tokens,
        revocations=revocations,
        standings=Standings(settings.issuer, ring, ring.now, revocations),
        feed=RevocationFeed(settings.issuer, settings.default_audience, revocations, tokens, clock),
        registered_scopes=registered_scopes,
        audit_log=audit_log,
        metadata=describe_server(settings),
        replay=doors.replay,
        key_sets=doors.key_sets,
        measures=measures,
    )
    services.install(app)
    _background(services, events).install(app)
    _mount_endpoints(app, services)
    app.cli.commands.update({str(command.name): command for command in COMMANDS})
    return app


def _open_doors(  # noqa: PLR0913, PLR0917 - Parts of the composition.
    settings: Settings,
    connections: KeptConnections,
    digester: SecretDigester,
    database_gate: circuit_breaker.DatabaseGate,
    clock: Clock,
    outbox: Outbox,
    measures: Measures,
) -> Doors:
    marks = UseMarks(db.engine, clock)
    return Doors(
        secrets=SecretVerifier(connections, digester, clock, marks, database_gate),
        lookup=ClientLookup(connections, marks, database_gate),
        replay=_open_replay(settings, SqlReplay(db.engine, database_gate, clock), clock, measures),
        readable=ReadableSecrets(settings.encryption_keys),
        key_sets=ClientKeySets(db.engine, Fetcher(settings.jwks_uri_networks), clock, outbox),
        clock=clock,
        rules=rules_of(settings, describe_server(settings)["token_endpoint"]),
    )


def _open_replay(settings: Settings, durable: SqlReplay, clock: Clock, measures: Measures) -> ReplayStore:
    if settings.redis_url is None:
        return durable
    from app.oauth.replay_store_redis import RedisReplay  # noqa: PLC0415 - Only who has one pays for the driver.

    return RedisReplay(settings.redis_url.get_secret_value(), durable, clock, span=measures.span)


def _open_server(
    settings: Settings, doors: Doors, tokens: AccessTokenIssuer, events: Events, measures: Measures
) -> TokenServer:
    return TokenServer(
        grants=GRANTS,
        methods=tuple(TimedMethod(method(doors), measures) for method in METHODS),
        tokens=TimedTokens(tokens, measures),
        policy=Policy(settings.access_token_lifetime, settings.default_audience),
        events=events,
        clock=doors.clock,
    )


def _background(services: Services, events: Events) -> Background:
    """What a worker does beside its requests."""
    verifier, key_uses = services.verifier, services.key_uses
    tell_expiring = partial(_tell_expiring, services.client_secrets, events)
    return Background(
        Job("the look at the key ring", LOOK_SECONDS, services.ring.refresh, on_the_second=True),
        Job("the look at the audit log", LOOK_SECONDS, services.audit_log.look),
        Job("the look whether logs were moved away", LOOK_SECONDS, lines.follow_files),
        Job("the events of commands", TELL_SECONDS, partial(services.outbox.drain, services.audit_log.tell_past)),
        Job("the look whether the database answers", circuit_breaker.LOOK_SECONDS, verifier.look),
        Job("the count of signed tokens", FLUSH_SECONDS, key_uses.flush, at_exit=True),
        Job("the marks of used secrets", FLUSH_SECONDS, verifier.marks.flush, at_exit=True),
        Job(
            "the look at clients' scopes",
            LOOK_AT_SCOPES_SECONDS,
            services.registered_scopes.look,
            at_start=True,
            on_the_second=True,
        ),
        Job("the look at what was used", LOOK_AT_REPLAY_SECONDS, services.replay.look, at_start=True),
        Job("the fetch of clients' keys", LOOK_AT_KEYS_SECONDS, services.key_sets.look),
        Job("the end of used assertions", FORGET_SECONDS, services.replay.forget_expired),
        Job("the end of old revocations", FORGET_SECONDS, services.revocations.forget_expired),
        Job("the look for secrets that expire", EXPIRY_LOOK_SECONDS, tell_expiring),
    )


def _tell_expiring(client_secrets: ClientSecrets, events: Events) -> None:
    for event in client_secrets.claim_expiring():
        events.emit(event)


def check_start(app: Flask) -> None:
    """Refuse to serve without a key that may sign; say what else is wrong with the ring.

    :raises StartError: one line that says what is wrong.
    """
    services: Services = app.extensions["tokenhouse"]
    services.ring.refresh()
    services.ring.signing_key()
    services.ring.note_max_age()
    for fault in faults(services.ring(), services.ring.now(), services.keys.rules):
        log.error("the key ring is not safe: %s", fault)


def describe_server(settings: Settings) -> Metadata:
    """Metadata of RFC 8414, from the registries and the settings alone.

    The members that only OpenID Connect Discovery asks for are there because many verifiers read nothing else. There is
    no authorization endpoint, so no response type returns anything: ``none`` says so where an empty list may not stand
    (section 3.2).
    """
    metadata: Metadata = {"issuer": settings.issuer}
    for endpoint in ENDPOINTS:
        metadata |= endpoint.metadata(settings)
    usable = [method for method in METHODS if settings.encryption_keys or not method.reads_secrets]
    methods = [method.name for method in usable]
    algs = list(dict.fromkeys(alg for method in usable for alg in method.signing_algs))
    authenticated = [endpoint.authenticates for endpoint in ENDPOINTS if endpoint.authenticates]
    return metadata | {
        "grant_types_supported": [grant.GRANT_TYPE for grant in GRANTS],
        **{f"{name}_auth_methods_supported": methods for name in authenticated},
        **{f"{name}_auth_signing_alg_values_supported": algs for name in authenticated},
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": list(dict.fromkeys((settings.signing_alg, "RS256"))),
    }


def _mount_endpoints(app: Flask, services: Services) -> None:
    """Serve every path at the root and, when the issuer has a path, below it: a proxy may take the path off or not."""
    issuer_path = urlsplit(services.settings.issuer).path
    for endpoint in ENDPOINTS:
        blueprint = endpoint.create_blueprint(services)
        app.register_blueprint(blueprint)
        if issuer_path:
            app.register_blueprint(blueprint, url_prefix=issuer_path, name=f"{blueprint.name}-at-issuer")
