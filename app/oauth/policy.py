"""Decides what a client's token may contain: scope, audiences and lifetime.

RFC 6749 section 3.3 (scope), RFC 8707 (resources), RFC 3986 section 6.2 (which URIs are the same). Pure: no Flask, no
database, no clock. The client is authenticated already.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.audiences import is_absolute_uri, is_audience, normalize
from app.clients.scopes import parse_scope
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
    :param reads_audience: whether the parameter ``audience`` of a request counts.
    """

    access_token_lifetime: int
    default_audience: str
    reads_audience: bool = True


def grant(  # noqa: PLR0913 - What a request says.
    client: Client,
    *,
    scope: str | None,
    resources: Sequence[str],
    policy: Policy,
    audiences: Sequence[str] = (),
    never_named: Sequence[str] = (),
) -> AccessTokenGrant:
    """Decide what a token for ``client`` may contain.

    :param scope: space-separated scope tokens (RFC 6749 section 3.3), or ``None`` when the request had none.
    :param resources: absolute URIs without fragment (RFC 8707 section 2).
    :param audiences: further APIs, by URI or name. Without resources and audiences the token is for the client's
        default.
    :param never_named: secrets of the request, which people paste into the wrong field: a refusal does not name
        them.
    :returns: scopes in the order of the request (all of the client's if it named none), audiences, lifetime in whole
        seconds.
    :raises InvalidScope: a scope that the client was not granted.
    :raises InvalidTarget: a resource that the client was not granted.
    """
    lifetime = client.access_token_lifetime
    named = audiences if policy.reads_audience else ()
    return AccessTokenGrant(
        scope=_granted_scope(client, scope, never_named),
        audiences=(
            _granted_audiences(client, resources, named, never_named)
            if resources or named
            else client.audiences[:1] or (policy.default_audience,)
        ),
        lifetime_seconds=policy.access_token_lifetime if lifetime is None else lifetime,
        claims=client.claims,
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
    client: Client, resources: Sequence[str], audiences: Sequence[str], never_named: Sequence[str]
) -> tuple[str, ...]:
    if not all(map(is_absolute_uri, resources)):
        raise InvalidTarget(RefusalReason.MALFORMED_RESOURCE)
    if not all(map(is_audience, audiences)):
        raise InvalidTarget(RefusalReason.MALFORMED_AUDIENCE, "An audience must be a URI or the name of an API.")
    found = {target: _find(target, client.audiences) for target in [*resources, *audiences]}
    if refused := [target for target, audience in found.items() if audience is None]:
        raise InvalidTarget(
            RefusalReason.RESOURCE_NOT_GRANTED,
            f"The client was not granted: {_list_some(refused, never_named)}",
            client_id=client.client_id,
        )
    return tuple(dict.fromkeys(audience for audience in found.values() if audience is not None))


def _find(requested: str, audiences: Sequence[str]) -> str | None:
    """Return the audience that ``requested`` means, as it was registered: verifiers compare ``aud`` byte by byte."""
    if requested in audiences:
        return requested
    wanted = normalize(requested)
    return next((audience for audience in audiences if normalize(audience) == wanted), None)


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
