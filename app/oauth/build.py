"""Builds the protocol from the other packages: called once, by ``create_app``."""

from app.clients.build import ClientServices
from app.config.settings import Settings
from app.database.build import Database
from app.database.circuit_breaker import Tracing
from app.keyring.build import KeyServices
from app.oauth.authorization_server import AuthorizationServer
from app.oauth.client_auth.dependencies import ClientAuthDependencies, assertion_rules
from app.oauth.metadata import describe_server
from app.oauth.replay_store import DatabaseReplayStore, ReplayStore
from app.oauth.services import OAuthServices
from app.tokens.build import TokenServices
from app.types import Clock


def build(  # noqa: PLR0913, PLR0917 - One parameter for each package below this one.
    settings: Settings,
    server: AuthorizationServer,
    database: Database,
    keys: KeyServices,
    clients: ClientServices,
    tokens: TokenServices,
    clock: Clock,
    *,
    traced_by: Tracing,
) -> OAuthServices:
    """Build what the authorization server, its methods and its endpoints work with.

    :param traced_by: makes the trace span of a query to Redis.
    """
    metadata = describe_server(settings)
    replay_store = _open_replay_store(settings, database, clock, traced_by)
    client_auth = ClientAuthDependencies(
        clients=clients.authenticator,
        replay_store=replay_store,
        encrypted_secrets=clients.encrypted_secrets,
        jwks_cache=clients.jwks_cache,
        clock=clock,
        rules=assertion_rules(settings, metadata["token_endpoint"]),
    )
    return OAuthServices(settings, clock, server, keys, clients, tokens, client_auth, replay_store, metadata)


def _open_replay_store(settings: Settings, database: Database, clock: Clock, traced_by: Tracing) -> ReplayStore:
    durable = DatabaseReplayStore(database.engine, database.circuit_breaker, clock)
    if settings.redis_url is None:
        return durable
    from app.oauth.replay_store_redis import RedisReplayStore  # noqa: PLC0415 - The driver is loaded only where it is used.

    return RedisReplayStore(settings.redis_url.get_secret_value(), durable, clock, traced_by=traced_by)
