"""Shapes that packages share: Protocols and frozen dataclasses without behaviour.

A grant, a client authentication method or an endpoint carries all its facets in one object. The registries
``oauth.client_auth.METHODS``, ``oauth.grants.GRANTS`` and ``oauth.endpoints.ENDPOINTS`` list those objects; the
metadata, the command line's choices and the checks of client fields iterate them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from authlib.oauth2.rfc6749 import ClientMixin

Clock = Callable[[], datetime]
"""Returns the current time as an aware datetime in UTC."""


class Rate(NamedTuple):
    """So many requests in so many seconds."""

    amount: int
    seconds: int


Metadata = dict[str, Any]
"""Members of the authorization server metadata document (RFC 8414 section 2)."""

ALL_RESOURCES = "*"
"""Among the resources whose tokens a client may introspect: all resources."""

DEFAULT_AUDIENCE = ""
"""Among the audiences of a client's tokens: the server's default audience."""

ANY_SECRET_METHOD = "client_secret"  # noqa: S105 - A method's name.
"""Our own value of ``token_endpoint_auth_method``: Basic and body are both accepted."""

SECRET_METHODS = ("client_secret_basic", "client_secret_post")
"""The methods that it stands for."""

SEVERAL_METHODS = {ANY_SECRET_METHOD: SECRET_METHODS}
"""Registered values that accept several methods. Any other value accepts the method of that name."""

SECRET_PREFIX = "ths_"  # noqa: S105 - The part that secret scanners look for.


@dataclass(frozen=True, slots=True)
class GrantedApi:
    """An API that a client may call.

    :param identifier: the ``aud`` of its tokens.
    :param scope: those of its scopes that the client was granted.
    :param access_token_lifetime: whole seconds, or ``None`` if the API sets none.
    :param claims: are added to its tokens.
    :param signing_alg: the algorithm that signs its tokens, or ``None`` for the server's.
    """

    name: str
    identifier: str
    scope: tuple[str, ...]
    access_token_lifetime: int | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)
    signing_alg: str | None = None


@dataclass(frozen=True, slots=True)
class Client(ClientMixin):
    """A client on the request path: frozen, no database row, no secret. Authlib gets this object.

    :param scope: the scopes that the client was granted, in registration order.
    :param audiences: the resources that its tokens may be for; the first is the default.
    :param access_token_lifetime: whole seconds, or ``None`` for the server's default.
    :param introspects: the resources whose tokens it may introspect; ``*`` stands for all.
    :param rate_limit: its own limit of token requests, or ``None`` for the server's default.
    :param tokens_not_before: its tokens issued then or earlier are revoked.
    :param sender_constraints: what its tokens must be bound to, by the names in ``oauth.sender_constraints``.
    :param claims: are added to its tokens.
    :param apis: further APIs that it may call, each with the scopes that it was granted there.
    """

    client_id: str
    client_name: str
    token_endpoint_auth_method: str
    grant_types: tuple[str, ...]
    scope: tuple[str, ...]
    audiences: tuple[str, ...]
    access_token_lifetime: int | None
    introspects: tuple[str, ...] = ()
    tokens_not_before: datetime | None = None
    rate_limit: Rate | None = None
    sender_constraints: tuple[str, ...] = ()
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)
    apis: tuple[GrantedApi, ...] = ()

    def get_client_id(self) -> str:
        """Return the client id."""
        return self.client_id

    def get_allowed_scope(self, scope: Collection[str] | str) -> str:
        """Return those of the space-separated scopes that the client was granted."""
        requested = scope.split() if isinstance(scope, str) else scope
        return " ".join(token for token in requested if token in self.scope)

    def check_grant_type(self, grant_type: str) -> bool:
        """Return whether the client may use ``grant_type``."""
        return grant_type in self.grant_types

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:  # noqa: ARG002
        """Return whether the client may authenticate by ``method``, at any endpoint."""
        registered = self.token_endpoint_auth_method
        return method in SEVERAL_METHODS.get(registered, (registered,))

    def check_client_secret(self, client_secret: str) -> bool:  # noqa: ARG002
        """Return false: secrets are verified by ``clients.authentication`` alone."""
        return False

    def check_response_type(self, response_type: str) -> bool:  # noqa: ARG002
        """Return false: no user means no authorization endpoint."""
        return False

    def check_redirect_uri(self, redirect_uri: str) -> bool:  # noqa: ARG002
        """Return false: nobody is redirected."""
        return False

    def get_default_redirect_uri(self) -> str:
        """Return nothing: nobody is redirected."""
        return ""


@dataclass(frozen=True, slots=True)
class Authentication:
    """The authenticated client of a request, and how it authenticated.

    :param method: the method's name as in the metadata, such as ``client_secret_basic``.
    :param secret_id: which of the client's secrets was used, if the method has secrets.
    :param secret_expires_at: when that secret expires, if it does.
    :param is_from_memory: whether the database was away, and the client is known from before.
    """

    client: Client
    method: str
    secret_id: str | None = None
    secret_expires_at: datetime | None = None
    is_from_memory: bool = False


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client id and a secret in clear text, as a request presented them. Lives for one request."""

    client_id: str
    secret: str

    def __repr__(self) -> str:
        """Keep the secret out of tracebacks and logs."""
        return "Credentials(…)"


@dataclass(frozen=True, slots=True)
class AccessTokenGrant:
    """What an access token may contain: decided by the policy, signed by the issuer.

    :param scope: scopes, in the order of the request.
    :param audiences: one or more resources.
    :param claims: further claims, by configuration.
    :param apis: the names of those APIs that the client was granted.
    :param signing_alg: the algorithm that signs it, or ``None`` for the server's.
    """

    scope: tuple[str, ...]
    audiences: tuple[str, ...]
    lifetime_seconds: int
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)
    apis: tuple[str, ...] = ()
    signing_alg: str | None = None


@dataclass(frozen=True, slots=True)
class UnverifiedJws:
    """The parts of a JWS (RFC 7515), parsed and not verified.

    :param header: ``None`` if it is not a JSON object.
    :param claims: ``None`` if they are not a JSON object.
    :param signed: what the signature covers.
    :param signature: empty if it is not base64url.
    """

    header: Mapping[str, Any] | None
    claims: Mapping[str, Any] | None
    signed: bytes
    signature: bytes


class TokenRequest(Protocol):
    """A request at an OAuth endpoint, parsed strictly: each parameter once, none empty, all decoded."""

    authorization: str | None
    """The value of the ``Authorization`` header; ``None`` if absent or empty."""

    parameters: Mapping[str, str]
    """Form parameters, except repeatable ones, which are in :attr:`resources` and :attr:`audiences`."""

    resources: Sequence[str]
    """The values of ``resource`` (RFC 8707 section 2), in order."""

    audiences: Sequence[str]
    """The values of ``audience``, in order. Callers of other servers send several of them with spaces in between."""

    source_address: str | None
    """The caller's address."""

    allows_memory: bool
    """Whether a known client may be served while the database is away: at the token endpoint alone."""

    sent_client_id: str
    """The client id as it was sent, in its raw reading; empty if there is none. Nothing is known of it."""

    presented_secrets: list[str]
    """Secrets and assertions that the request contains, in each reading: no response and no log may contain them."""

    assertion_facts: dict[str, str]
    """For the audit log: issuer, subject and trust of a platform's token whose signature is valid."""

    method: str
    """The HTTP method."""

    environ: dict[str, Any]
    """The WSGI environment, for headers that few requests have."""

    authentication: Authentication
    """The authenticated client. Authentication methods do not have it yet."""

    response_headers: list[tuple[str, str]]
    """Headers for the response, whether the request is refused or not."""

    @property
    def unverified_assertion(self) -> UnverifiedJws | None:
        """The client assertion, parsed; ``None`` if there is none, or it is no JWS."""


class Authenticator(Protocol):
    """A client authentication method, as requests use it."""

    name: str
    """The method's registered name (RFC 7591 section 2), as in the metadata."""

    parameters: frozenset[str]
    """The form parameters that the method reads."""

    needs_certificate: bool
    """Whether only a request with the caller's certificate can use the method."""

    def is_presented(self, request: TokenRequest) -> bool:
        """Return whether ``request`` uses this method, correctly or not."""
        ...

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Authenticate the client that sent ``request``.

        :raises InvalidClient: authentication failed, with the reason for the log.
        """
        ...


class SenderConstraint(Protocol):
    """A way to bind tokens to a key of the client. CONTRIBUTING.md shows how to add one."""

    name: str
    """Its name in :attr:`Client.sender_constraints`."""

    client_metadata: str
    """The member of a client's metadata (RFC 7591) that says whether its tokens must be bound so."""

    option: str
    """The option of ``flask clients create`` and ``update`` that sets it, without dashes."""

    option_help: str

    requires: tuple[str, ...]
    """The settings without which no token can be bound so; the metadata then does not mention it."""

    header: str
    """The WSGI variable of the header with which a caller requests a bound token."""

    @staticmethod
    def metadata(settings: Any, endpoints: Metadata) -> Metadata:
        """Return the members of the server's metadata.

        :param endpoints: those of the endpoints.
        """
        ...

    def confirm(self, request: TokenRequest) -> dict[str, str]:
        """Return members of the token's ``cnf`` claim (RFC 7800), empty if this token needs none.

        Called if the request has :attr:`header`, or the client's tokens must be bound.

        :raises OAuthError: the proof or certificate is missing or invalid.
        """
        ...


class ClientAuthMethod(Authenticator, Protocol):
    """A client authentication method. CONTRIBUTING.md shows how to add one."""

    has_secrets: bool
    """Whether clients of this method have secrets that we generate."""

    uses_secret_as_key: bool
    """Whether the method uses a secret as the key of a MAC: such secrets are stored encrypted, not as digests."""

    requires: tuple[str, ...]
    """The settings without which no client can use the method; the metadata then does not mention it."""

    @property
    def signing_algs(self) -> tuple[str, ...]:
        """The algorithms of the method's assertions, as in the metadata; empty for a method without assertions."""

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers besides its secrets, before it is stored.

        :raises ManagementError: a field is missing, wrong, or unknown to this method.
        """
        ...
