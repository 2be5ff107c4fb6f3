"""Builds the periodic tasks of a worker: called once, by ``create_app``."""

from datetime import date
from functools import partial

from sqlalchemy.engine import Engine

from app.apis.documents import POLL_SECONDS as DOCUMENTS_POLL_SECONDS
from app.apis.usage import FLUSH_SECONDS as API_USES_FLUSH_SECONDS
from app.audit.events import Events, TokenQuotaExceeded
from app.audit.outbox import DRAIN_SECONDS
from app.audit.streams import follow_files
from app.audit.summaries import SUMMARY_SECONDS
from app.clients.jwks_cache import POLL_SECONDS as JWKS_POLL_SECONDS
from app.clients.last_used import FLUSH_SECONDS
from app.clients.outage_memory import POLL_SECONDS as MEMORY_POLL_SECONDS
from app.clients.registered_scopes import POLL_SECONDS as SCOPES_POLL_SECONDS
from app.clients.secrets import ClientSecrets
from app.clients.usage import FLUSH_SECONDS as USAGE_FLUSH_SECONDS
from app.database import circuit_breaker
from app.keyring.active import POLL_SECONDS
from app.operations.background_jobs import PeriodicTask, Scheduler
from app.operations.servers import POLL_SECONDS as SERVERS_POLL_SECONDS
from app.operations.servers import ServerRegistry
from app.operations.snapshot import POLL_SECONDS as SNAPSHOT_POLL_SECONDS
from app.operations.snapshot import open_snapshot
from app.services import Services

EXPIRY_POLL_SECONDS = 60.0
"""How often a worker checks for secrets whose expiry is to be reported. Each is reported once a day."""

DELETE_SECONDS = 60.0
"""How often a worker deletes expired rows."""

RETIRED_POLL_SECONDS = 3600.0
"""How often a worker deletes old secrets and counts. Finding old secrets reads the whole table."""

REPLAY_POLL_SECONDS = 1.0
"""How often a worker checks whether the replay store responds, and whether it has forgotten anything."""


def build(services: Services, engine: Engine) -> Scheduler:
    """Build the periodic tasks. None runs yet. The memories of clients and keys learn of the snapshot."""
    audit, apis, clients, keys, oauth, tokens = (
        services.audit,
        services.apis,
        services.clients,
        services.keys,
        services.oauth,
        services.tokens,
    )
    emit_expiring = partial(_emit_expiring, clients.secrets, audit.events)
    clients.usage.on_total = partial(_report_quota, services)
    registry = ServerRegistry(services.settings, engine, keys.active, services.clock)
    snapshots = []
    if snapshot := open_snapshot(services, engine):
        clients.outage_memory.restore, keys.active.restore = snapshot.clients, snapshot.ring
        registry.seen_by_snapshot = snapshot.read_at
        snapshots.append(PeriodicTask("Writing the snapshot", SNAPSHOT_POLL_SECONDS, snapshot.poll, at_start=True))
    return Scheduler(
        *snapshots,
        PeriodicTask("Polling the key ring", POLL_SECONDS, keys.active.refresh, on_the_second=True),
        PeriodicTask("Checking the audit log", POLL_SECONDS, audit.log.poll),
        PeriodicTask("Summarizing refusals", SUMMARY_SECONDS, audit.summaries.flush, at_exit=True),
        PeriodicTask("Checking whether logs were moved away", POLL_SECONDS, follow_files),
        PeriodicTask(
            "Writing the events of commands",
            DRAIN_SECONDS,
            partial(audit.outbox.drain, audit.log.write_past),
        ),
        PeriodicTask("Probing the database", circuit_breaker.POLL_SECONDS, clients.authenticator.poll),
        PeriodicTask("Reading known clients", MEMORY_POLL_SECONDS, clients.outage_memory.poll),
        PeriodicTask("Writing the counts of signed tokens", FLUSH_SECONDS, keys.usage.flush, at_exit=True),
        PeriodicTask("Writing when secrets were used", FLUSH_SECONDS, clients.last_used.flush, at_exit=True),
        PeriodicTask(
            "Scanning clients' scopes",
            SCOPES_POLL_SECONDS,
            clients.registered_scopes.poll,
            at_start=True,
            on_the_second=True,
        ),
        PeriodicTask("Writing which APIs were used", API_USES_FLUSH_SECONDS, apis.usage.flush, at_exit=True),
        PeriodicTask("Reading the documents of APIs", DOCUMENTS_POLL_SECONDS, apis.documents.poll, at_start=True),
        PeriodicTask("Checking the replay store", REPLAY_POLL_SECONDS, oauth.replay_store.poll, at_start=True),
        PeriodicTask("Fetching clients' keys", JWKS_POLL_SECONDS, clients.jwks_cache.poll),
        PeriodicTask("Fetching platforms' keys", JWKS_POLL_SECONDS, clients.issuer_keys.poll),
        PeriodicTask("Recording this server", SERVERS_POLL_SECONDS, registry.poll, at_start=True),
        PeriodicTask("Deleting expired assertions", DELETE_SECONDS, oauth.replay_store.delete_expired),
        PeriodicTask("Deleting expired revocations", DELETE_SECONDS, tokens.revocations.delete_expired),
        PeriodicTask("Writing the counts of clients' tokens", USAGE_FLUSH_SECONDS, clients.usage.flush, at_exit=True),
        PeriodicTask("Deleting old counts of clients' tokens", RETIRED_POLL_SECONDS, clients.usage.delete_old),
        PeriodicTask("Deleting retired secrets", RETIRED_POLL_SECONDS, clients.secrets.delete_retired),
        PeriodicTask("Finding secrets that expire", EXPIRY_POLL_SECONDS, emit_expiring),
    )


def _report_quota(services: Services, day: date, client_id: str, before: int, after: int) -> None:
    """Emit an event when a client's tokens of a day come to exceed the quota."""
    quota = services.settings.token_quota
    if quota is not None and services.settings.reports_quota and before <= quota < after:
        services.audit.events.emit(TokenQuotaExceeded(client_id=client_id, day=str(day), quota=quota, tokens=after))


def _emit_expiring(client_secrets: ClientSecrets, events: Events) -> None:
    for event in client_secrets.claim_expiring():
        events.emit(event)
