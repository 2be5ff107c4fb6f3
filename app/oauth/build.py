"""Builds the protocol from the other packages: called once, by ``create_app``."""

from app.clients.build import ClientServices
from app.config.settings import Settings
from app.database.build import Database
from app.database.circuit_breaker import Span
from app.keyring.active import ActiveRing
from app.oauth.authorization_server import AuthorizationServer
from app.oauth.client_auth.dependencies import ClientAuthDependencies, assertion_rules
from app.oauth.replay_store import DatabaseReplayStore, ReplayStore
from app.oauth.services import OAuthServices
from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocation_feed import RevocationFeed
from app.tokens.revocations import Revocations
from app.tokens.status import TokenStatuses
from app.types import Clock, Metadata


def build(  # noqa: PLR0913, PLR0917 - One parameter for each package below this one.
    settings: Settings,
    server: AuthorizationServer,
    metadata: Metadata,
    database: Database,
    clients: ClientServices,
    active_keys: ActiveRing,
    clock: Clock,
    *,
    span: Span,
) -> OAuthServices:
    """Build what the authorization server, its methods and its endpoints work with.

    :param metadata: the document of RFC 8414.
    :param span: the trace span of a query to Redis.
    """
    replay_store = _open_replay_store(settings, database, clock, span)
    client_auth = ClientAuthDependencies(
        clients=clients.authenticator,
        replay_store=replay_store,
        encrypted_secrets=clients.encrypted_secrets,
        jwks_cache=clients.jwks_cache,
        clock=clock,
        rules=assertion_rules(settings, metadata["token_endpoint"]),
    )
    issuer = AccessTokenIssuer(settings.issuer, active_keys.signing_key, clock)
    revocations = Revocations(database.engine, database.connections, database.circuit_breaker, clock)
    return OAuthServices(
        settings=settings,
        clock=clock,
        server=server,
        client_auth=client_auth,
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
