"""``POST /oauth/token``: RFC 6749 section 3.2. All decisions are left to ``authorization_server``."""

from flask import Blueprint

from app.config.settings import Settings
from app.http.application import without_contexts
from app.oauth.services import Endpoint, OAuthServices
from app.types import Metadata

PATH = "/oauth/token"


def _create_blueprint(services: OAuthServices) -> Blueprint:
    blueprint = Blueprint("token", __name__)

    view = without_contexts(services.server.create_token_response)
    blueprint.add_url_rule(PATH, "issue_token", view, methods=["POST"], provide_automatic_options=False)
    return blueprint


def _metadata(settings: Settings) -> Metadata:
    return {"token_endpoint": f"{settings.issuer}{PATH}"}


TOKEN = Endpoint(_create_blueprint, _metadata, authenticates="token_endpoint")
