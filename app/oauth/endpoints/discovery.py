"""The documents for verifiers: the JWKS (RFC 7517) and the metadata (RFC 8414, and at OpenID Connect Discovery's path).

They are public: caches may store them and browsers may read them. Which keys are in the JWKS is left to ``keyring``.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint
from werkzeug.exceptions import PreconditionFailed
from werkzeug.http import parse_etags

from app.config.settings import Settings
from app.http.application import Request, Response, without_contexts
from app.oauth.services import Endpoint, OAuthServices
from app.types import Metadata

JWKS_PATH = "/.well-known/jwks.json"
OAUTH_METADATA_PATH = "/.well-known/oauth-authorization-server"
OPENID_METADATA_PATH = "/.well-known/openid-configuration"


_CONDITIONS = {
    "HTTP_IF_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_RANGE",
    "HTTP_IF_UNMODIFIED_SINCE",
    "HTTP_RANGE",
}
"""The conditional headers of RFC 9110 sections 13 and 14."""


def _create_blueprint(services: OAuthServices) -> Blueprint:
    blueprint = Blueprint("discovery", __name__)
    blueprint.after_request(let_browsers_read)
    max_age = services.settings.jwks_max_age
    read_jwks = _reader(lambda keys: {"keys": [key.public_jwk for key in keys]}, services.keys.active.published_keys)
    read_metadata = _reader(
        lambda scopes, resources: _with_registered(services.metadata, scopes, resources),
        services.clients.registered_scopes,
        services.apis.documents.identifiers,
    )

    @blueprint.get(JWKS_PATH)
    @without_contexts
    def show_jwks(request: Request) -> Response:
        return public_document(request, *read_jwks(), max_age)

    @blueprint.get(OAUTH_METADATA_PATH)
    @blueprint.get(OPENID_METADATA_PATH)
    @blueprint.get(f"{OAUTH_METADATA_PATH}{urlsplit(services.settings.issuer).path}", endpoint="at_issuer_path")
    @without_contexts
    def show_metadata(request: Request) -> Response:
        return public_document(request, *read_metadata(), max_age)

    return blueprint


def _metadata(settings: Settings) -> Metadata:
    return {"jwks_uri": f"{settings.issuer}{JWKS_PATH}"}


def _with_registered(metadata: Mapping[str, Any], scopes: Sequence[str], resources: Sequence[str]) -> Mapping[str, Any]:
    """Add the scopes of clients and APIs, and the APIs that have metadata: RFC 9728 section 4."""
    protected = {"protected_resources": [*metadata["protected_resources"], *resources]}
    # RFC 8414 section 3.2 forbids empty members.
    return {**metadata, **protected, **({"scopes_supported": scopes} if scopes else {})}


def _reader(describe: Callable[..., Any], *finders: Callable[[], object]) -> Callable[[], tuple[bytes, str]]:
    """Return a function that returns a document and its ETag, encoded again only if a finder returns another object.

    :param describe: returns the document for what the finders return.
    """
    latest: tuple[Sequence[object], bytes, str] = ((), b"", "")

    def read() -> tuple[bytes, str]:
        nonlocal latest
        content = [find() for find in finders]
        # Read once and replaced as a whole: other threads do the same, perhaps with other content.
        encoded, body, etag = latest
        if not body or any(before is not now for before, now in zip(encoded, content, strict=True)):
            body = json.dumps(describe(*content), indent=2).encode()
            etag = etag_of(body)
            latest = content, body, etag
        return body, etag

    return read


def public_document(request: Request, body: bytes, etag: str, max_age: int) -> Response:
    """Return a document that caches may store, or 304.

    :param max_age: how long, in seconds.
    :raises PreconditionFailed: ``If-Match`` names another document.
    """
    headers = [("ETag", f'"{etag}"'), ("Cache-Control", f"public, max-age={max_age}")]
    conditions = _CONDITIONS.intersection(request.environ)
    if conditions == {"HTTP_IF_NONE_MATCH"} and request.environ["HTTP_IF_NONE_MATCH"] == headers[0][1]:
        # The usual condition. Lists of tags, weak tags and dates are left to Werkzeug.
        return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    _require_match(request.environ.get("HTTP_IF_MATCH"), etag)
    response = Response(body, headers=headers, content_type="application/json")
    if conditions or request.method == "HEAD":
        # Werkzeug treats ``If-Match: *`` as a tag that does not match.
        response.make_conditional({name: value for name, value in request.environ.items() if name != "HTTP_IF_MATCH"})
    return response


def _require_match(if_match: str | None, etag: str) -> None:
    """Evaluate ``If-Match``: RFC 9110 section 13.1.1.

    :raises PreconditionFailed: no entity tag matches. The error must not be cached, as no error may.
    """
    if if_match is not None and if_match.strip() != "*" and not parse_etags(if_match).is_strong(etag):
        raise PreconditionFailed


def let_browsers_read(response: Response) -> Response:
    """Allow scripts of any origin to read the documents; answer a browser's preflight request too."""
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Access-Control-Allow-Headers"] = "*"
    return response


def etag_of(body: bytes) -> str:
    """Return the entity tag of a document, without quotes."""
    return hashlib.sha256(body).hexdigest()[:32]


DISCOVERY = Endpoint(_create_blueprint, _metadata)
