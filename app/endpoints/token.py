"""``POST /oauth/token``: RFC 6749 section 3.2. All that can be decided is decided in ``server`` and beyond."""

from flask import Blueprint, Response
from flask.globals import request_ctx

from app.contracts import Metadata
from app.services import Endpoint, Services

PATH = "/oauth/token"


def _create_blueprint(services: Services) -> Blueprint:
    blueprint = Blueprint("token", __name__)

    @blueprint.post(PATH, provide_automatic_options=False)
    def issue_token() -> Response:
        return services.server.create_token_response(request_ctx.request)  # type: ignore[arg-type]

    return blueprint


def _metadata(issuer: str) -> Metadata:
    return {"token_endpoint": f"{issuer}{PATH}"}


TOKEN = Endpoint(_create_blueprint, _metadata)
