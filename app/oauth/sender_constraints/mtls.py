"""Certificate-bound access tokens: RFC 8705 section 3.

The token contains the thumbprint of the client's certificate. The certificate need not be verified: the client has
proven its private key to the proxy, and must prove it again to each API.
"""

from app.config.settings import Settings
from app.errors import InvalidRequest
from app.oauth.client_auth.tls import SelfSignedTlsClientAuth, TlsClientAuth
from app.oauth.services import OAuthServices
from app.reasons import RefusalReason
from app.types import Metadata, TokenRequest


class Mtls:
    """Binds tokens of clients that authenticate with a certificate, or whose tokens must be bound to one."""

    name = "mtls"
    client_metadata = "tls_client_certificate_bound_access_tokens"
    option = "bind-certificate"
    requires: tuple[str, ...] = ("trusted_proxies",)
    option_help = "Bind its tokens to its TLS certificate, and refuse its token requests without one."

    def __init__(self, services: OAuthServices) -> None:
        self._certificates = services.server.certificates
        self.header = self._certificates.header

    @staticmethod
    def metadata(settings: Settings, endpoints: Metadata) -> Metadata:
        """Return the members of the server's metadata (sections 3.3 and 5)."""
        base = settings.mtls_url
        aliases = {
            name: f"{base}{url.removeprefix(settings.issuer)}"
            for name, url in endpoints.items()
            if name.endswith("_endpoint")
        }
        return {Mtls.client_metadata: True, **({"mtls_endpoint_aliases": aliases} if base else {})}

    def confirm(self, request: TokenRequest) -> dict[str, str]:
        """Return the ``cnf`` of the token of ``request`` (section 3.1).

        :raises InvalidRequest: the request has no certificate, or it cannot be parsed.
        """
        authentication = request.authentication
        is_by_certificate = authentication.method in {TlsClientAuth.name, SelfSignedTlsClientAuth.name}
        if not is_by_certificate and self.name not in authentication.client.sender_constraints:
            return {}
        found = self._certificates.read(request.environ)
        if found is None:
            raise InvalidRequest(
                RefusalReason.CERTIFICATE_MISSING, "The request must come with a client certificate over TLS."
            )
        return {"x5t#S256": found.thumbprint}
