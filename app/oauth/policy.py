"""Decides what a client's token may contain: scope, audiences and lifetime.

RFC 6749 section 3.3 (scope), RFC 8707 (resources). Pure: no Flask, no database, no clock. The client is
authenticated already.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.clients.scopes import parse_scope
from app.config.values import is_absolute_uri
from app.errors import InvalidScope, InvalidTarget
from app.reasons import RefusalReason
from app.types import SECRET_PREFIX, AccessTokenGrant, Client

# A refusal names what was refused, but stays short whatever was requested.
_NAMED_IN_A_REFUSAL = 10
_NAMED_CHARACTERS = 100


WITHHELD = "(withheld: it looks like a secret)"

_PART_OF_A_SECRET_CHARACTERS = 8
_LIKE_OURS = re.compile(rf"{SECRET_PREFIX}[A-Za-z0-9_-]{{16}}")


@dataclass(frozen=True, slots=True)
class Policy:
    """The server's defaults, for clients without their own values.

    :param access_token_lifetime: whole seconds.
    """

    access_token_lifetime: int
    default_audience: str


def grant(
    client: Client, *, scope: str | None, resources: Sequence[str], policy: Policy, never_named: Sequence[str] = ()
) -> AccessTokenGrant:
    """Decide what a token for ``client`` may contain.

    :param scope: space-separated scope tokens (RFC 6749 section 3.3), or ``None`` when the request had none.
    :param resources: absolute URIs without fragment (RFC 8707 section 2); empty means the client's default.
    :param never_named: secrets of the request, which people paste into the wrong field: a refusal does not name
        them.
    :returns: scopes in the order of the request (all of the client's if it named none), audiences, lifetime in whole
        seconds.
    :raises InvalidScope: a scope that the client was not granted.
    :raises InvalidTarget: a resource that the client was not granted.
    """
    lifetime = client.access_token_lifetime
    return AccessTokenGrant(
        scope=_granted_scope(client, scope, never_named),
        audiences=_granted_audiences(client, resources, policy, never_named),
        lifetime_seconds=policy.access_token_lifetime if lifetime is None else lifetime,
    )


def _granted_scope(client: Client, scope: str | None, never_named: Sequence[str]) -> tuple[str, ...]:
    if scope is None:
        return client.scope
    asked = parse_scope(scope)
    if refused := [token for token in asked if token not in client.scope]:
        raise InvalidScope(
            RefusalReason.SCOPE_NOT_GRANTED,
            f"The client was not granted: {_list_some(refused, never_named)}",
            client_id=client.client_id,
        )
    return asked


def _granted_audiences(
    client: Client, resources: Sequence[str], policy: Policy, never_named: Sequence[str]
) -> tuple[str, ...]:
    if not resources:
        return client.audiences[:1] or (policy.default_audience,)
    if not all(map(is_absolute_uri, resources)):
        raise InvalidTarget(RefusalReason.MALFORMED_RESOURCE)
    if refused := [resource for resource in resources if resource not in client.audiences]:
        raise InvalidTarget(
            RefusalReason.RESOURCE_NOT_GRANTED,
            f"The client was not granted: {_list_some(refused, never_named)}",
            client_id=client.client_id,
        )
    return tuple(dict.fromkeys(resources))


def _list_some(tokens: Sequence[str], never_named: Sequence[str]) -> str:
    """List the first few of ``tokens``, which have passed their grammar, without duplicates."""
    named = [
        WITHHELD
        if _may_be_secret(token, never_named)
        else token
        if len(token) <= _NAMED_CHARACTERS
        else f"{token[:_NAMED_CHARACTERS]}..."
        for token in dict.fromkeys(tokens)
    ]
    return " ".join(named[:_NAMED_IN_A_REFUSAL]) + (" ..." if len(named) > _NAMED_IN_A_REFUSAL else "")


def _may_be_secret(token: str, secrets: Sequence[str]) -> bool:
    """Return whether ``token`` looks like one of our secrets, contains one of ``secrets``, or is a long part of one."""
    if _LIKE_OURS.search(token):
        return True
    is_long = len(token) >= _PART_OF_A_SECRET_CHARACTERS
    return any(secret in token or (is_long and token in secret) for secret in secrets)
