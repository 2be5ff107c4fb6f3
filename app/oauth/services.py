"""What the endpoints work with, and the shape of an endpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from flask import Blueprint

from app.apis.build import ApiServices
from app.clients.build import ClientServices
from app.config.settings import Settings
from app.http.application import Request, Response, without_contexts
from app.keyring.build import KeyServices
from app.oauth.authorization_server import AuthorizationServer
from app.oauth.client_auth.dependencies import ClientAuthDependencies
from app.oauth.replay_store import ReplayStore
from app.tokens.build import TokenServices
from app.types import Clock, Metadata

RESOURCE_METADATA_PATH = "/.well-known/oauth-protected-resource"


@dataclass(frozen=True, slots=True)
class OAuthServices:
    """The parts of the protocol.

    :param client_auth: what the constructors of client authentication methods get.
    :param metadata: the document of RFC 8414, without ``scopes_supported``, which changes.
    """

    settings: Settings
    clock: Clock
    server: AuthorizationServer
    keys: KeyServices
    clients: ClientServices
    apis: ApiServices
    tokens: TokenServices
    client_auth: ClientAuthDependencies
    replay_store: ReplayStore
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of ``endpoints.ENDPOINTS``: its routes, and what the metadata says of it.

    :param create_blueprint: makes the routes.
    :param metadata: the members that the endpoint adds to the metadata.
    :param authenticates: the metadata member that names the endpoint, if clients authenticate there; the metadata then
        lists their methods too.
    :param path: where it is, for one with :attr:`registered`.
    :param is_protected_resource: whether it has a metadata document of RFC 9728.
    :param registered: makes the ``TokenEndpoint`` of Authlib that ``create_app`` registers, from the services.
    """

    create_blueprint: Callable[[OAuthServices], Blueprint]
    metadata: Callable[[Settings], Metadata]
    authenticates: str | None = None
    registered: Callable[[OAuthServices], Any] | None = None
    path: str = ""
    is_protected_resource: bool = False

    @classmethod
    def of(  # noqa: PLR0913 - The facets of an endpoint.
        cls,
        registered: Any,
        path: str,
        metadata: Callable[[Settings], Metadata],
        *,
        methods: Sequence[str] = ("POST",),
        authenticates: str | None = None,
        is_protected_resource: bool = False,
    ) -> Self:
        """Return the endpoint of a subclass of Authlib's ``TokenEndpoint``, at one path."""
        name: str = registered.ENDPOINT_NAME

        def create_blueprint(services: OAuthServices) -> Blueprint:
            blueprint = Blueprint(name, registered.__module__)

            @blueprint.route(path, methods=methods, endpoint="respond", provide_automatic_options=False)
            @without_contexts
            def respond(request: Request) -> Response:
                response: Response = services.server.create_endpoint_response(name, request)
                return response

            return blueprint

        def create(services: OAuthServices) -> Any:
            endpoint = registered(services)
            if is_protected_resource:
                endpoint.resource_metadata = resource_metadata_url(services.settings.issuer, path)
            return endpoint

        return cls(create_blueprint, metadata, authenticates, create, path, is_protected_resource)


def resource_metadata_url(issuer: str, path: str) -> str:
    """Return the URL of the metadata of a protected endpoint: RFC 9728 section 3.1.

    :param path: of the endpoint, below the issuer.
    """
    parts = urlsplit(issuer)
    return f"{parts.scheme}://{parts.netloc}{RESOURCE_METADATA_PATH}{parts.path}{path}"
