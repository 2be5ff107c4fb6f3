"""``/livez`` and ``/readyz``, for orchestrators: names and ``ok``, ``degraded`` or ``failed``, no more."""

import logging

from flask import Blueprint

from app.http.application import Request, Response, json_response, without_contexts
from app.observability.health import check_health, ring_problem
from app.services import Services

log = logging.getLogger(__name__)


PROBES = "health"
"""The name of the blueprint."""


def create_blueprint(services: Services) -> Blueprint:
    """Create the routes."""
    blueprint = Blueprint(PROBES, __name__)

    @blueprint.get("/livez")
    @without_contexts
    def show_alive(_request: Request) -> Response:
        return json_response(200, {"status": "ok"})

    @blueprint.get("/readyz")
    def show_ready() -> Response:
        checks = check_health(services)
        if checks["keyring"] == "failed":
            log.error("not ready: %s", ring_problem(services))
        worst = next((state for state in ("failed", "degraded") if state in checks.values()), "ok")
        return json_response(503 if worst == "failed" else 200, {"status": worst, "checks": checks})

    return blueprint
