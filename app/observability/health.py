"""The health of this worker: each part by name, as ``ok``, ``degraded`` (it works, with a fault) or ``failed``."""

from sqlalchemy.exc import SQLAlchemyError

from app.errors import ServiceUnavailable, StartError
from app.services import Services
from app.shared_state import shared_state


def check_health(services: Services) -> dict[str, str]:
    """Return the names and states of the checks: anyone may read them."""
    checks = {"database": _database(services), "keyring": _keyring(services), "settings": _settings()}
    checks["audit_log"] = "degraded" if services.audit.log.is_stalled else "ok"
    if services.settings.redis_url:
        checks["redis"] = "degraded" if services.oauth.replay_store.is_unavailable else "ok"
    if services.clients.jwks_cache.failing or services.clients.issuer_keys.failing:
        # Which clients is for the log, the doctor and the metrics listener: anyone may read this.
        checks["client_keys"] = "degraded"
    return checks


def _database(services: Services) -> str:
    try:
        services.clients.authenticator.answers()
        return "ok" if services.clients.authenticator.takes_writes() else "degraded"
    except (ServiceUnavailable, SQLAlchemyError):
        return "degraded" if services.clients.authenticator.serves_known_clients() else "failed"


def ring_problem(services: Services) -> str | None:
    """Return why no key signs; ``None`` if one does."""
    try:
        services.keys.active.signing_key()
    except StartError as error:
        return str(error)
    return None


def _keyring(services: Services) -> str:
    if ring_problem(services):
        return "failed"
    return "degraded" if services.keys.active.fault or services.keys.active.is_clock_behind else "ok"


def _settings() -> str:
    shared = shared_state()
    return "degraded" if shared and shared.reload_failed else "ok"
