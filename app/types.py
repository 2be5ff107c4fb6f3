"""The shapes that rooms share: Protocols and frozen dataclasses, nothing that acts.

A feature (a grant, a client authentication method, an endpoint) carries all its facets in one object, and the
registries ``client_auth.METHODS``, ``grants.GRANTS`` and ``endpoints.ENDPOINTS`` list those objects. Metadata, the
command line's choices and the checks of client fields iterate the registries.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

Clock = Callable[[], datetime]
"""Now, as an aware datetime in UTC."""

Metadata = dict[str, Any]
"""Members of the authorization server metadata document (RFC 8414 section 2)."""

ALL_RESOURCES = "*"
"""Stands, among the resources whose tokens a client may ask about, for all."""

DEFAULT_AUDIENCE = ""
"""Stands, among those that a client's tokens may be for, for the server's default."""

SECRET_PREFIX = "ths_"  # noqa: S105 - The part that secret scanners look for.


@dataclass(frozen=True, slots=True)
class Client:
    """A client as the request path sees it: frozen, no row, no secret. Authlib is handed this one.

    :param scope: the scope tokens that it may ask for, in registration order.
    :param audiences: the resources that its tokens may be for; the first is the default.
    :param access_token_lifetime: whole seconds, or ``None`` for the server's own default.
    :param introspects: the resources whose tokens it may ask about; ``*`` stands for all.
    :param tokens_not_before: its tokens that were issued then, or earlier, are dead.
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

    def get_client_id(self) -> str:
        """Name that Authlib's code calls."""
        return self.client_id

    def check_grant_type(self, grant_type: str) -> bool:
        """Whether the client may use ``grant_type``; Authlib's name for it."""
        return grant_type in self.grant_types


@dataclass(frozen=True, slots=True)
class Authentication:
    """Who a request came from, and how that was proven.

    :param method: the method's name in the metadata's terms, such as ``client_secret_basic``.
    :param secret_id: which of the client's secrets it was, where the method has secrets.
    :param secret_expires_at: when that secret ends, if it does.
    """

    client: Client
    method: str
    secret_id: str | None = None
    secret_expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """An id with a secret in clear text, as a request presented them. Lives for one request."""

    client_id: str
    secret: str

    def __repr__(self) -> str:
        """Keep the secret out of every traceback and log."""
        return "Credentials(…)"


@dataclass(frozen=True, slots=True)
class AccessTokenGrant:
    """What an access token may say: settled by policy, signed by the issuer.

    :param scope: scope tokens, in the order in which they were asked for.
    :param audiences: one or more resources.
    """

    scope: tuple[str, ...]
    audiences: tuple[str, ...]
    lifetime_seconds: int


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A signed access token and what the answer and the audit log say of it. ``encoded`` is a secret."""

    encoded: str
    jti: str
    kid: str
    grant: AccessTokenGrant

    def __repr__(self) -> str:
        """Keep the token out of every traceback and log."""
        return f"AccessToken(jti={self.jti!r})"


class TokenRequest(Protocol):
    """A request at an OAuth endpoint, parsed strictly: each parameter once, none empty, all decoded."""

    authorization: str | None
    """The value of the ``Authorization`` header; ``None`` when absent or empty."""

    parameters: Mapping[str, str]
    """Form parameters. Those that may be repeated stand in :attr:`resources` only."""

    resources: Sequence[str]
    """Values of ``resource`` (RFC 8707 section 2), in order."""

    source_address: str | None
    """The TCP peer."""

    presented_secrets: list[str]
    """What the request proves itself with, in each reading: nothing of it may come back in an answer or a log."""


class Authenticator(Protocol):
    """A way for a client to prove who it is, as requests need it."""

    name: str
    """The method's registered name (RFC 7591 section 2), as the metadata advertises it."""

    parameters: frozenset[str]
    """The form parameters that it reads."""

    def is_presented(self, request: TokenRequest) -> bool:
        """Whether ``request`` uses this method, well or badly."""
        ...

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Who sent ``request``.

        :raises InvalidClient: whatever is wrong, with the reason for the log.
        """
        ...


class ClientAuthMethod(Authenticator, Protocol):
    """A way for a client to prove who it is. See CONTRIBUTING.md for how to add one."""

    has_secrets: bool
    """Whether a client of this method has secrets that we generate."""

    uses_secret_as_key: bool
    """Whether it must read these secrets again, so that they are kept encrypted instead of as digests."""

    @property
    def signing_algs(self) -> tuple[str, ...]:
        """The algorithms of its assertions, as the metadata advertises them; empty for a method without assertions."""

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers beside its secrets, before it is stored.

        :raises ManagementError: something is missing, wrong, or does not belong there.
        """
        ...
