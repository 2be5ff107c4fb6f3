"""``/.well-known/oauth-protected-resource/…``: the metadata of protected resources (RFC 9728).

Each protected endpoint of this server has a document, which its ``WWW-Authenticate`` names, and so has each API that
asks for one.
"""

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlsplit

from flask import Blueprint
from flask import request as flask_request
from werkzeug.exceptions import NotFound, ServiceUnavailable

from app.config.settings import Settings
from app.errors import RETRY_AFTER_SECONDS
from app.errors import ServiceUnavailable as DatabaseAway
from app.http.application import Request, Response, without_contexts
from app.oauth.endpoints.discovery import etag_of, let_browsers_read, public_document
from app.oauth.services import RESOURCE_METADATA_PATH, Endpoint, OAuthServices, resource_metadata_url
from app.types import Metadata


def protected_resources(own: Iterable[Endpoint]) -> Endpoint:
    """Return the endpoint of the documents.

    :param own: this server's protected endpoints, among others.
    """
    paths = [endpoint.path for endpoint in own if endpoint.is_protected_resource]

    def create_blueprint(services: OAuthServices) -> Blueprint:
        return _create_blueprint(services, paths)

    def metadata(settings: Settings) -> Metadata:
        return {"protected_resources": [f"{settings.issuer}{path}" for path in paths]}

    return Endpoint(create_blueprint, metadata)


def api_document_url(issuer: str, name: str) -> str:
    """Return the URL of the document of an API."""
    return f"{issuer}{RESOURCE_METADATA_PATH}/{quote(name, safe='')}"


def _create_blueprint(services: OAuthServices, paths: Iterable[str]) -> Blueprint:
    blueprint = Blueprint("protected_resources", __name__)
    blueprint.after_request(let_browsers_read)
    issuer = services.settings.issuer
    for number, path in enumerate(paths):
        document = _encode(_describe_own(issuer, path))
        at_issuer_path = urlsplit(resource_metadata_url(issuer, path)).path
        for where, rule in (("", f"{RESOURCE_METADATA_PATH}{path}"), ("at_issuer_path", at_issuer_path)):
            view = without_contexts(_document_view(document, services.settings.jwks_max_age))
            blueprint.add_url_rule(rule, f"show_{number}{where}", view, methods=["GET"])

    @blueprint.get(f"{RESOURCE_METADATA_PATH}/<name>")
    def show_api(name: str) -> Response:
        try:
            document = services.apis.documents.find(name)
        except DatabaseAway:
            raise ServiceUnavailable(retry_after=RETRY_AFTER_SECONDS) from None
        if document is None:
            raise NotFound
        request: Any = flask_request
        return _respond(request, _encode(document), services.settings.jwks_max_age)

    return blueprint


def _describe_own(issuer: str, path: str) -> dict[str, Any]:
    """Return the document of an endpoint where clients authenticate as at the token endpoint, and not with a token."""
    return {"resource": f"{issuer}{path}", "authorization_servers": [issuer], "bearer_methods_supported": []}


def _document_view(document: bytes, max_age: int) -> Any:
    def show(request: Request) -> Response:
        return _respond(request, document, max_age)

    return show


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _respond(request: Request, document: bytes, max_age: int) -> Response:
    return public_document(request, document, etag_of(document), max_age)
