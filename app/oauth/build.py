"""Builds the protocol from the other packages: called by ``create_app``."""

from app.apis.build import ApiServices
from app.clients.build import ClientServices
from app.config.settings import Settings
from app.database.build import Database
from app.keyring.build import KeyServices
from app.oauth.authorization_server import AuthorizationServer
from app.oauth.client_auth.dependencies import ClientAuthDependencies, assertion_rules
from app.oauth.client_auth.trust_anchors import TrustAnchors
from app.oauth.metadata import describe_server
from app.oauth.rate_limiter_redis import RedisCounts
from app.oauth.rate_limits import RateLimits
from app.oauth.replay_store import DatabaseReplayStore
from app.oauth.replay_store_redis import RedisReplayStore
from app.oauth.services import OAuthServices
from app.tokens.build import TokenServices
from app.types import Clock


def build(  # noqa: PLR0913, PLR0917 - One parameter for each package below this one.
    settings: Settings,
    server: AuthorizationServer,
    database: Database,
    keys: KeyServices,
    clients: ClientServices,
    apis: ApiServices,
    tokens: TokenServices,
    clock: Clock,
) -> OAuthServices:
    """Build what the authorization server, its methods and its endpoints work with."""
    metadata = describe_server(settings)
    durable = DatabaseReplayStore(database.engine, database.circuit_breaker, clock)
    replay_store = RedisReplayStore(database.redis, durable, clock) if database.redis else durable
    client_auth = ClientAuthDependencies(
        clients=clients.authenticator,
        replay_store=replay_store,
        encrypted_secrets=clients.encrypted_secrets,
        jwks_cache=clients.jwks_cache,
        issuer_keys=clients.issuer_keys,
        clock=clock,
        limits=server.limits,
        certificates=server.certificates,
        trust_anchors=TrustAnchors(settings.mtls_trust_anchors, settings.mtls_crls),
        rules=assertion_rules(settings, metadata["token_endpoint"]),
    )
    return OAuthServices(settings, clock, server, keys, clients, apis, tokens, client_auth, replay_store, metadata)


def build_limits(settings: Settings, database: Database, clients: ClientServices, clock: Clock) -> RateLimits:
    """Build the rate limits, which the authorization server applies."""
    shared = RedisCounts(database.redis) if database.redis else None
    return RateLimits(settings, clients, clock, shared)
