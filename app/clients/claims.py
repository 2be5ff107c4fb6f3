"""Claims that operators add to tokens: ``--claim NAME=VALUE`` of clients and APIs. Pure.

A value is text; one that begins with ``[`` or ``{`` is JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.clients.scopes import SCOPE_TOKEN
from app.errors import ManagementError

NAME_MAX_CHARACTERS = 100
CLAIMS_MAX_BYTES = 1024
"""All claims of a client, or of an API, as JSON."""

_ISSUED = {"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "cnf"}
"""RFC 7519 section 4.1, RFC 9068 section 2.2, RFC 7800."""

_AUTHENTICATION = {"auth_time", "nonce", "acr", "amr", "azp", "at_hash", "c_hash", "s_hash", "sub_jwk"}
"""OpenID Connect Core section 2."""

_AUTHORIZATION = {"act", "may_act", "authorization_details", "sub_id", "sid", "status", "events", "toe", "txn"}
"""RFC 8693 section 4, RFC 9396, RFC 9493, RFC 8417, and the status of tokens."""

_PERSONS = (
    {"name", "given_name", "family_name", "middle_name", "nickname", "preferred_username", "profile", "picture"}
    | {"website", "email", "email_verified", "gender", "birthdate", "zoneinfo", "locale", "phone_number"}
    | {"phone_number_verified", "address", "updated_at"}
)
"""OpenID Connect Core section 5.1: they describe persons, and clients are services."""

_PROOFS = {"htm", "htu", "ath", "vc", "vp", "vct", "_sd", "_sd_alg", "_claim_names", "_claim_sources"}
"""RFC 9449 section 4.2, verifiable credentials, and references to claims in other places."""

_INTROSPECTION = {"active", "token_type", "username", "token_introspection"}
"""Other members of an introspection response: RFC 7662 section 2.2, RFC 9701."""

REGISTERED_CLAIMS = frozenset(_ISSUED | _AUTHENTICATION | _AUTHORIZATION | _PERSONS | _PROOFS | _INTROSPECTION)
"""Claim names with a defined meaning, which operators may not set. ``roles``, ``groups`` and ``entitlements`` are not
among them: RFC 9068 section 2.2.3.1 lets operators define their values.
"""


def parse_claims(given: Sequence[str]) -> dict[str, Any]:
    """Parse claims of the form ``NAME=VALUE``; empty ones are left out.

    :raises ManagementError: one is malformed, or occurs twice.
    """
    claims: dict[str, Any] = {}
    for one in filter(None, given):
        name, equals, text = one.partition("=")
        if not equals:
            raise ManagementError("--claim must be NAME=VALUE")
        if name in claims:
            raise ManagementError(f'--claim {name} is given twice: {name}=["a", "b"] is a list')
        claims[name] = _parse_value(name, text)
    return claims


def _parse_value(name: str, text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return orjson.loads(text)
    except ValueError:
        raise ManagementError(f"--claim {name}: a value that begins with {text[0]} must be JSON") from None


def check_claims(claims: Mapping[str, Any]) -> None:
    """Check claims before they are stored.

    :raises ManagementError: a name is not allowed, or there is too much.
    """
    for name in claims:
        if not SCOPE_TOKEN.fullmatch(name) or len(name) > NAME_MAX_CHARACTERS:
            raise ManagementError(
                f"the name of a claim must be 1 to {NAME_MAX_CHARACTERS} characters of printable ASCII without space, "
                "quote and backslash"
            )
        if name in REGISTERED_CLAIMS:
            raise ManagementError(f"{name!r} is a registered claim name: choose another name")
    try:
        size = len(orjson.dumps(claims))
    except (TypeError, ValueError):
        raise ManagementError("the value of a claim must be text or JSON that is not nested deeply") from None
    if size > CLAIMS_MAX_BYTES:
        raise ManagementError(f"all claims together must have at most {CLAIMS_MAX_BYTES} bytes as JSON")
