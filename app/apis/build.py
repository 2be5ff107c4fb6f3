"""Builds the API services of an application: called once, by ``create_app``."""

from dataclasses import dataclass

from app.apis.documents import ApiDocuments
from app.apis.repository import ApiRepository
from app.apis.usage import ApiUsage
from app.audit.build import AuditServices
from app.clients.token_size import TokenSize
from app.config.settings import Settings
from app.database.build import Database
from app.types import Clock


@dataclass(frozen=True, slots=True)
class ApiServices:
    """The parts that know APIs.

    :param repository: management; needs an application context.
    :param documents: what is published of APIs.
    :param usage: records which APIs and scopes clients use.
    """

    repository: ApiRepository
    documents: ApiDocuments
    usage: ApiUsage


def build(settings: Settings, database: Database, audit: AuditServices, clock: Clock) -> ApiServices:
    """Build the API services."""
    return ApiServices(
        repository=ApiRepository(database.session, audit.outbox, clock, TokenSize.of(settings)),
        documents=ApiDocuments(
            database.engine,
            database.connections,
            database.circuit_breaker,
            settings.issuer,
            publishes_scopes=settings.publish_scopes,
        ),
        usage=ApiUsage(database.engine, clock),
    )
