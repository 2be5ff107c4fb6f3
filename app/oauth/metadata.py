"""The authorization server metadata: RFC 8414 section 2, from the registries and the settings alone."""

from app.config.settings import Settings
from app.oauth.client_auth import METHODS
from app.oauth.endpoints import ENDPOINTS
from app.oauth.grants import GRANTS
from app.oauth.sender_constraints import SENDER_CONSTRAINTS
from app.types import Metadata

REGISTERED_METHODS = {
    "client_secret_basic",
    "client_secret_post",
    "client_secret_jwt",
    "private_key_jwt",
    "tls_client_auth",
    "self_signed_tls_client_auth",
}
"""The names that a client library may know (RFC 8414 section 2). To a caller ``federated_jwt`` is RFC 7523."""


def describe_server(settings: Settings) -> Metadata:
    """Return the metadata document.

    The members that only OpenID Connect Discovery requires are there because many verifiers read nothing else. No
    response type returns anything: ``none`` says so, since RFC 8414 section 3.2 forbids an empty list.

    Nothing is served at ``authorization_endpoint``, since there are no users. The MCP SDKs for Python and Node reject
    metadata without it, although RFC 8414 section 2 lets such a server leave it out.
    """
    metadata: Metadata = {"issuer": settings.issuer}
    for endpoint in ENDPOINTS:
        metadata |= endpoint.metadata(settings)
    for constraint in SENDER_CONSTRAINTS:
        if not settings.missing(constraint.requires):
            metadata |= constraint.metadata(settings, metadata)
    usable = [method for method in METHODS if not settings.missing(method.requires)]
    methods = [method.name for method in usable if method.name in REGISTERED_METHODS]
    algs = list(dict.fromkeys(alg for method in usable for alg in method.signing_algs))
    authenticated = [endpoint.authenticates for endpoint in ENDPOINTS if endpoint.authenticates]
    return metadata | {
        "grant_types_supported": [grant.GRANT_TYPE for grant in GRANTS],
        **{f"{name}_auth_methods_supported": methods for name in authenticated},
        **{f"{name}_auth_signing_alg_values_supported": algs for name in authenticated},
        "authorization_endpoint": f"{settings.issuer}/oauth/authorize",
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": list(dict.fromkeys((settings.signing_alg, "RS256"))),
    }
