"""What a client may consist of: every field is checked before anything is stored. Pure.

Names are RFC 7591's where it has one. Which grants and authentication methods exist is checked by the callers, from
the registries.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from app.audiences import AUDIENCE_RULE, is_audience
from app.clients.claims import check_claims
from app.clients.scopes import RESERVED_SCOPE_PREFIX, parse_scope
from app.clients.secret_digests import IMPORTED_SECRET_MAX_CHARACTERS, IMPORTED_SECRET_MIN_CHARACTERS, is_vschar
from app.config.values import LONGEST_LIFETIME_SECONDS, format_duration
from app.database.models import CLIENT_ID_MAX_CHARACTERS
from app.errors import InvalidScope, ManagementError
from app.types import ALL_RESOURCES, Rate

TEXT_MAX_CHARACTERS = 1000
LIST_MAX_ENTRIES = 1000
SCOPE_MAX_CHARACTERS = 4096
AUDIENCE_MAX_CHARACTERS = 2000
"""A token travels in a header, and most servers accept headers of 8 KiB."""


@dataclass(frozen=True, slots=True)
class ClientFields:
    """The fields of a new or changed client, checked on creation of this object.

    :param access_token_lifetime: whole seconds, 1 s to 24 h, or ``None`` for the server's default.
    :param rate_limit: its own limit of token requests, or ``None`` for the server's default.
    :param auth_fields: what the client's authentication method stores; checked by the method.
    :param introspects: the resources whose tokens it may introspect, or :data:`ALL_RESOURCES` alone.
    :param sender_constraints: what its tokens must be bound to, by the names in ``oauth.sender_constraints``.
    :param claims: are added to its tokens.
    :raises ManagementError: a field is wrong; what is allowed.
    """

    client_name: str
    scope: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    access_token_lifetime: int | None = None
    token_endpoint_auth_method: str = "client_secret"  # noqa: S105 - A method's name.
    grant_types: tuple[str, ...] = ("client_credentials",)
    contacts: tuple[str, ...] = ()
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    introspects: tuple[str, ...] = ()
    auth_fields: Mapping[str, Any] = field(default_factory=dict)
    rate_limit: Rate | None = None
    sender_constraints: tuple[str, ...] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check all fields."""
        check_text("name", self.client_name, required=True)
        check_text("description", self.description)
        for contact in self.contacts:
            check_text("contact", contact, required=True)
        for key, value in self.labels.items():
            check_text("label", key, required=True)
            check_text(f"label {key}", value)
        for entries in (self.scope, self.audiences, self.introspects, self.contacts, self.labels):
            if len(entries) > LIST_MAX_ENTRIES:
                raise ManagementError(
                    f"a client has at most {LIST_MAX_ENTRIES} scopes, audiences, resources to introspect, contacts "
                    "or labels"
                )
        if len(" ".join(self.scope)) > SCOPE_MAX_CHARACTERS:
            raise ManagementError(f"all scopes of a client together have at most {SCOPE_MAX_CHARACTERS} characters")
        for token in self.scope:
            check_scope_token(token)
        check_claims(self.claims)
        for audience in self.audiences:
            check_audience("audience", audience)
        if self.introspects != (ALL_RESOURCES,):
            for resource in self.introspects:
                check_audience("resource to introspect", resource, f"; or {ALL_RESOURCES} alone")
        check_lifetime(self.access_token_lifetime)


def split_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Join several space-separated lists of scopes: in order, without duplicates.

    :raises ManagementError: a list breaks RFC 6749 section 3.3.
    """
    tokens: dict[str, None] = {}
    for scope in scopes:
        if not scope:
            continue
        try:
            tokens.update(dict.fromkeys(parse_scope(scope)))
        except InvalidScope:
            raise ManagementError(
                f"scope {scope!r} must be tokens of printable ASCII without quote and backslash, one space between them"
            ) from None
    return tuple(tokens)


def check_client_id(client_id: str) -> None:
    """Check a client id that is imported.

    :raises ManagementError: it is empty, too long, or not %x20-7E (RFC 6749 appendix A.1).
    """
    if not 1 <= len(client_id) <= CLIENT_ID_MAX_CHARACTERS or not is_vschar(client_id):
        raise ManagementError(f"client id must be 1 to {CLIENT_ID_MAX_CHARACTERS} characters of printable ASCII")


def check_imported_secret(secret: str) -> None:
    """Check a secret that is imported.

    :raises ManagementError: it is too short, or not %x20-7E (RFC 6749 appendix A.2). Never quotes it.
    """
    if not IMPORTED_SECRET_MIN_CHARACTERS <= len(secret) <= IMPORTED_SECRET_MAX_CHARACTERS or not is_vschar(secret):
        raise ManagementError(
            f"the secret must be {IMPORTED_SECRET_MIN_CHARACTERS} to {IMPORTED_SECRET_MAX_CHARACTERS} characters "
            "of printable ASCII"
        )


def form_decode(text: str) -> str:
    """Decode ``text`` as a form, as clients that follow RFC 6749 section 2.3.1 encode it in Basic.

    :raises UnicodeDecodeError: the result is not UTF-8, so ``text`` was not form-encoded.
    """
    return unquote_plus(text, errors="strict")


def check_scope_token(token: str) -> None:
    """Check one scope.

    :raises ManagementError: it breaks the grammar, or is one of the server's own.
    """
    if split_scopes([token]) != (token,):
        raise ManagementError(f"scope {token!r} must be one scope token")
    if token.startswith(RESERVED_SCOPE_PREFIX):
        raise ManagementError(
            f"scope {token!r}: scopes that begin with {RESERVED_SCOPE_PREFIX!r} are this server's own"
        )


def check_audience(what: str, audience: str, otherwise: str = "") -> None:
    """Check the identifier of an API.

    :param what: its name in the message.
    :param otherwise: what else is allowed.
    :raises ManagementError: it is too long, or neither a URI nor a name.
    """
    if len(audience) > AUDIENCE_MAX_CHARACTERS:
        raise ManagementError(f"{what} has more than {AUDIENCE_MAX_CHARACTERS} characters")
    if not is_audience(audience):
        raise ManagementError(f"{what} {audience!r} {AUDIENCE_RULE}{otherwise}")


def check_lifetime(seconds: int | None) -> None:
    """Check the lifetime of tokens, if one is set.

    :raises ManagementError: it is too short or too long.
    """
    if seconds is not None and not 1 <= seconds <= LONGEST_LIFETIME_SECONDS:
        raise ManagementError(f"lifetime must be from 1s to {format_duration(LONGEST_LIFETIME_SECONDS)}")


def check_text(name: str, text: str, *, required: bool = False) -> None:
    """Check a text for people.

    :raises ManagementError: it is too long, not one printable line, or missing.
    """
    if (required and not text.strip()) or len(text) > TEXT_MAX_CHARACTERS or not text.isprintable():
        raise ManagementError(
            f"{name} must be {'1' if required else '0'} to {TEXT_MAX_CHARACTERS} printable characters in one line"
        )
