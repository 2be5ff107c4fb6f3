"""``/oauth/authorize``: refuses every request, since this server has no users.

The metadata names it because OpenID Connect Discovery requires the member, and because the MCP SDKs for Python and
Node reject metadata without it, although RFC 8414 section 2 lets a server without such grants leave it out.
"""

from flask import Blueprint

from app.config.settings import Settings
from app.errors import NO_RESPONSE_TYPE
from app.http.application import Request, Response, json_response, without_contexts
from app.oauth.services import Endpoint, OAuthServices
from app.types import Metadata

PATH = "/oauth/authorize"


def _create_blueprint(services: OAuthServices) -> Blueprint:  # noqa: ARG001 - It needs none.
    blueprint = Blueprint("authorization", __name__)

    @blueprint.route(PATH, methods=("GET", "POST"), endpoint="refuse", provide_automatic_options=False)
    @without_contexts
    def refuse(request: Request) -> Response:  # noqa: ARG001
        return json_response(400, NO_RESPONSE_TYPE)

    return blueprint


def _metadata(settings: Settings) -> Metadata:
    return {"authorization_endpoint": f"{settings.issuer}{PATH}"}


AUTHORIZATION = Endpoint(_create_blueprint, _metadata)
