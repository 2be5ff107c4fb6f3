"""Builds the protocol from the other packages: called once, by ``create_app``."""

from app.audit.events import Events
from app.clients.build import ClientServices
from app.config.settings import Settings
from app.database.build import Database
from app.database.circuit_breaker import Span
from app.keyring.active import ActiveRing
from app.oauth.authorization_server import Timed, TokenServer
from app.oauth.client_auth import METHODS
from app.oauth.client_auth.dependencies import ClientAuthDependencies, assertion_rules
from app.oauth.grants import GRANTS
from app.oauth.metadata import describe_server
from app.oauth.policy import Policy
from app.oauth.replay_store import DatabaseReplayStore, ReplayStore
from app.oauth.services import OAuthServices
from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocation_feed import RevocationFeed
from app.tokens.revocations import Revocations
from app.tokens.status import TokenStatuses
from app.types import Clock


def build(  # noqa: PLR0913, PLR0917 - One parameter for each package below this one.
    settings: Settings,
    database: Database,
    clients: ClientServices,
    active_keys: ActiveRing,
    events: Events,
    clock: Clock,
    *,
    timed: Timed,
    span: Span,
) -> OAuthServices:
    """Build the authorization server and what its endpoints work with.

    :param timed: wraps a function so that its duration is recorded as that of a part of a token request.
    :param span: the trace span of a query to Redis.
    """
    metadata = describe_server(settings)
    replay_store = _open_replay_store(settings, database, clock, span)
    dependencies = ClientAuthDependencies(
        secrets=clients.authenticator,
        lookup=clients.lookup,
        replay_store=replay_store,
        encrypted_secrets=clients.encrypted_secrets,
        jwks_cache=clients.jwks_cache,
        clock=clock,
        rules=assertion_rules(settings, metadata["token_endpoint"]),
    )
    issuer = AccessTokenIssuer(settings.issuer, active_keys.signing_key, clock)
    server = TokenServer(
        grants=GRANTS,
        methods=[method(dependencies) for method in METHODS],
        tokens=issuer,
        policy=Policy(settings.access_token_lifetime, settings.default_audience),
        events=events,
        clock=clock,
        timed=timed,
    )
    revocations = Revocations(database.engine, database.connections, database.circuit_breaker, clock)
    return OAuthServices(
        settings=settings,
        clock=clock,
        server=server,
        issuer=issuer,
        statuses=TokenStatuses(settings.issuer, active_keys, active_keys.now, revocations),
        revocations=revocations,
        revocation_feed=RevocationFeed(settings.issuer, settings.default_audience, revocations, issuer, clock),
        replay_store=replay_store,
        active_keys=active_keys,
        registered_scopes=clients.registered_scopes,
        metadata=metadata,
    )


def _open_replay_store(settings: Settings, database: Database, clock: Clock, span: Span) -> ReplayStore:
    durable = DatabaseReplayStore(database.engine, database.circuit_breaker, clock)
    if settings.redis_url is None:
        return durable
    from app.oauth.replay_store_redis import RedisReplayStore  # noqa: PLC0415 - The driver is loaded only where it is used.

    return RedisReplayStore(settings.redis_url.get_secret_value(), durable, clock, span=span)
