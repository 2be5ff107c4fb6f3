"""Client secrets, in HTTP Basic and in the body: RFC 6749 section 2.3.1.

Half of all clients send Basic raw, and half form-encoded, as the RFC requires. Both readings are candidates: (raw
id, raw secret) and (decoded id, decoded secret), never mixed. Both are always looked up and digested, unless they
are the same.

Verifying a secret is left to ``clients.authentication``.
"""

from binascii import a2b_base64
from collections.abc import Mapping
from typing import Any

from app.clients.fields import form_decode
from app.clients.secret_digests import is_vschar
from app.errors import InvalidClient, InvalidRequest, ManagementError
from app.http.forms import require_parameter
from app.oauth.client_auth.dependencies import ClientAuthDependencies
from app.reasons import RefusalReason
from app.types import Authentication, Credentials, TokenRequest


class _ClientSecret:
    """What both methods share: the client has secrets and registers nothing else."""

    name: str
    has_secrets = True
    needs_certificate = False
    uses_secret_as_key = False
    requires: tuple[str, ...] = ()
    signing_algs: tuple[str, ...] = ()

    def __init__(self, dependencies: ClientAuthDependencies) -> None:
        self._clients = dependencies.clients

    def _verify(self, request: TokenRequest, *candidates: Credentials) -> Authentication:
        address, allows_memory = request.source_address, request.allows_memory
        return self._clients.verify_secret(candidates, self.name, address, allows_memory=allows_memory)

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check that nothing else is registered.

        :raises ManagementError: something is.
        """
        if fields:
            raise ManagementError(
                "keys and assertions are for clients with --auth-method private_key_jwt or client_secret_jwt"
            )
        return {}


class ClientSecretBasic(_ClientSecret):
    """``client_secret_basic``: the credentials are in the ``Authorization`` header."""

    name = "client_secret_basic"
    parameters = frozenset({"client_id"})

    def is_presented(self, request: TokenRequest) -> bool:
        """Return true for any ``Authorization`` header: whatever its scheme, it is an attempt to authenticate."""
        return request.authorization is not None

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Authenticate the client that sent ``request``.

        :raises InvalidClient: the header is not Basic, is malformed, or is wrong.
        :raises InvalidRequest: a ``client_id`` in the body is another one.
        """
        raw = _read_basic(request.authorization or "")
        decoded = _form_decoded(raw)
        request.sent_client_id = raw.client_id
        request.presented_secrets += raw.secret, decoded.secret
        body_id = request.parameters.get("client_id")
        if body_id not in {None, raw.client_id, decoded.client_id}:
            raise _other_client_id()
        authentication = self._verify(request, *([raw] if decoded == raw else [raw, decoded]))
        if body_id not in {None, authentication.client.client_id}:
            raise _other_client_id()
        return authentication


class ClientSecretPost(_ClientSecret):
    """``client_secret_post``: the credentials are in the body."""

    name = "client_secret_post"
    parameters = frozenset({"client_id", "client_secret"})

    def is_presented(self, request: TokenRequest) -> bool:
        """Return whether the body has a secret."""
        return "client_secret" in request.parameters

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Authenticate the client that sent ``request``.

        :raises InvalidRequest: ``client_id`` is missing.
        :raises InvalidClient: malformed or wrong.
        """
        credentials = Credentials(
            require_parameter(request.parameters, "client_id"), request.parameters["client_secret"]
        )
        request.sent_client_id = credentials.client_id
        request.presented_secrets.append(credentials.secret)
        if not (is_vschar(credentials.client_id) and is_vschar(credentials.secret)):
            raise InvalidClient(RefusalReason.MALFORMED_CREDENTIALS)
        return self._verify(request, credentials)


def _read_basic(authorization: str) -> Credentials:
    """Parse the header: RFC 7617 section 2, in the characters of RFC 6749 appendix A."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise InvalidClient(RefusalReason.UNSUPPORTED_SCHEME)
    try:
        text = a2b_base64(encoded.lstrip(" "), strict_mode=True).decode("ascii")
    except ValueError:
        raise InvalidClient(RefusalReason.MALFORMED_CREDENTIALS) from None
    client_id, colon, secret = text.partition(":")
    # It is ASCII already; printable ASCII is VSCHAR.
    if not (client_id and colon and secret and text.isprintable()):
        raise InvalidClient(RefusalReason.MALFORMED_CREDENTIALS)
    return Credentials(client_id, secret)


def _form_decoded(raw: Credentials) -> Credentials:
    """Form-decode id and secret, both or neither; return the raw reading if that is impossible."""
    if "%" not in raw.client_id + raw.secret and "+" not in raw.client_id + raw.secret:
        return raw
    try:
        decoded = Credentials(form_decode(raw.client_id), form_decode(raw.secret))
    except UnicodeDecodeError:
        return raw
    return decoded if is_vschar(decoded.client_id) and is_vschar(decoded.secret) else raw


def _other_client_id() -> InvalidRequest:
    return InvalidRequest(RefusalReason.OTHER_CLIENT_ID, "The client_id in the body is not the one that authenticates.")
