"""Builds the client services of an application: called once, by ``create_app``."""

from collections.abc import Collection
from dataclasses import dataclass

from app.audit.build import AuditServices
from app.clients.authentication import ClientAuthenticator
from app.clients.encrypted_secrets import EncryptedSecrets
from app.clients.jwks_cache import ISSUERS, JwksCache
from app.clients.last_used import LastUsedTracker
from app.clients.outage_memory import OutageMemory
from app.clients.registered_scopes import RegisteredScopes
from app.clients.repository import ClientRepository
from app.clients.secret_digests import SecretDigester
from app.clients.secrets import ClientSecrets
from app.clients.token_size import TokenSize
from app.clients.trusts import ClientTrusts
from app.clients.usage import ClientUsage
from app.config.settings import Settings
from app.database.build import Database
from app.http.safe_fetch import Fetcher
from app.types import Clock


@dataclass(frozen=True, slots=True)
class ClientServices:
    """The parts that know clients.

    :param repository: management of clients; needs an application context.
    :param secrets: management of their secrets; needs an application context.
    :param authenticator: authenticates clients, on the request path.
    :param trusts: management of the platforms that clients trust; needs an application context.
    :param usage: counts the tokens of each client.
    :param outage_memory: known clients, for an outage of the database.
    """

    repository: ClientRepository
    secrets: ClientSecrets
    authenticator: ClientAuthenticator
    encrypted_secrets: EncryptedSecrets
    jwks_cache: JwksCache
    issuer_keys: JwksCache
    trusts: ClientTrusts
    last_used: LastUsedTracker
    usage: ClientUsage
    outage_memory: OutageMemory
    registered_scopes: RegisteredScopes


def build(
    settings: Settings,
    database: Database,
    audit: AuditServices,
    clock: Clock,
    *,
    methods_with_mac: Collection[str],
) -> ClientServices:
    """Build the client services.

    :param methods_with_mac: the authentication methods that verify a MAC: their clients' secrets are stored
        encrypted.
    """
    digester = SecretDigester(settings.secret_peppers)
    encrypted = EncryptedSecrets(settings.encryption_keys)
    last_used = LastUsedTracker(database.engine, clock)
    usage = ClientUsage(database.engine, clock, keeps_totals=settings.enforces_quota)
    audit.events.subscribe(usage)
    connections, circuit_breaker = database.connections, database.circuit_breaker
    memory = OutageMemory(database.engine, circuit_breaker, settings.outage_grace)
    outbox = audit.outbox
    secrets = ClientSecrets(database.engine, database.session, digester, clock, outbox, encrypted, methods_with_mac)
    fetcher = Fetcher(settings.jwks_uri_networks)
    issuer_keys = JwksCache(database.engine, fetcher, clock, outbox, ISSUERS)
    return ClientServices(
        repository=ClientRepository(database.engine, database.session, secrets, clock, TokenSize.of(settings)),
        secrets=secrets,
        authenticator=ClientAuthenticator(connections, digester, clock, last_used, circuit_breaker, memory),
        encrypted_secrets=encrypted,
        jwks_cache=JwksCache(database.engine, fetcher, clock, outbox),
        issuer_keys=issuer_keys,
        trusts=ClientTrusts(database.session, secrets, issuer_keys, clock, settings.issuer),
        last_used=last_used,
        usage=usage,
        outage_memory=memory,
        registered_scopes=RegisteredScopes(database.engine, published=settings.publish_scopes),
    )
