"""``/livez`` and ``/readyz``, for orchestrators: names and ``ok``, ``degraded`` or ``failed``, no more."""

import logging

from flask import Blueprint, Response

from app.contracts import Metadata
from app.errors import ServiceUnavailable
from app.keyring import last_good
from app.services import Endpoint, Services
from app.settings import Settings, StartError
from app.web import Asked, at_once, json_response

log = logging.getLogger(__name__)


def _create_blueprint(services: Services) -> Blueprint:
    blueprint = Blueprint("ops", __name__)

    @blueprint.get("/livez")
    @at_once
    def show_alive(_asked: Asked) -> Response:
        return json_response(200, {"status": "ok"})

    @blueprint.get("/readyz")
    def show_ready() -> Response:
        checks = {"database": _database(services), "keyring": _keyring(services), "settings": _settings()}
        checks["audit_log"] = "degraded" if services.audit_log.is_stalled else "ok"
        if services.settings.redis_url:
            checks["redis"] = "degraded" if services.replay.is_away else "ok"
        checks |= {f"client_keys:{client_id}": "degraded" for client_id in services.key_sets.failing}
        worst = next((state for state in ("failed", "degraded") if state in checks.values()), "ok")
        return json_response(503 if worst == "failed" else 200, {"status": worst, "checks": checks})

    return blueprint


def _database(services: Services) -> str:
    try:
        services.verifier.answers()
    except ServiceUnavailable:
        return "failed"
    return "ok"


def _keyring(services: Services) -> str:
    try:
        services.ring.signing_key()
    except StartError as error:
        log.error("not ready: %s", error)  # noqa: TRY400 - One clear line says it all.
        return "failed"
    return "degraded" if services.ring.fault or services.ring.is_clock_behind else "ok"


def _settings() -> str:
    shared = last_good.shared()
    return "degraded" if shared and shared.reload_failed else "ok"


def _metadata(settings: Settings) -> Metadata:  # noqa: ARG001 - Nothing of this is for clients.
    return {}


OPS = Endpoint(_create_blueprint, _metadata)
