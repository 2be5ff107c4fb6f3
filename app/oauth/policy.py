"""Decides what a client's token may contain: scope, audiences and lifetime.

RFC 6749 section 3.3 (scope), RFC 8707 (resources), RFC 3986 section 6.2 (which URIs are the same). Pure: no Flask, no
database, no clock. The client is authenticated already.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.audiences import is_absolute_uri, is_audience, normalize
from app.clients.scopes import parse_scope
from app.errors import InvalidScope, InvalidTarget
from app.reasons import RefusalReason
from app.types import SECRET_PREFIX, AccessTokenGrant, Client, GrantedApi

MOST_TARGETS = 100
"""Resources and audiences that one request may name."""

_form_of = lru_cache(maxsize=1024)(normalize)
"""Normalizes registered audiences only: requested ones would fill the cache."""

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
    :param signing_alg: the algorithm that signs tokens.
    :param reads_audience: whether the parameter ``audience`` of a request counts.
    """

    access_token_lifetime: int
    default_audience: str
    signing_alg: str = "RS256"
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
    # Most clients have no APIs, and pay nothing for them.
    own_scope = None if client.apis else _granted_scope(client, scope, client.scope, never_named)
    named = audiences if policy.reads_audience else ()
    targets = (
        _granted_audiences(client, resources, named, never_named)
        if resources or named
        else _default_audience(client, policy)
    )
    lifetime = client.access_token_lifetime
    if own_scope is not None:
        own_lifetime = policy.access_token_lifetime if lifetime is None else lifetime
        return AccessTokenGrant(own_scope, targets, own_lifetime, client.claims)
    apis = [api for api in client.apis if api.identifier in targets]
    lifetimes = [lifetime, *(api.access_token_lifetime for api in apis)]
    return AccessTokenGrant(
        scope=_granted_scope(client, scope, _allowed_scope(client, targets, apis), never_named),
        audiences=targets,
        lifetime_seconds=min((each for each in lifetimes if each is not None), default=policy.access_token_lifetime),
        claims=_claims(client, apis),
        apis=tuple(api.name for api in apis),
        signing_alg=_signing_alg(client, targets, apis, policy),
    )


def _default_audience(client: Client, policy: Policy) -> tuple[str, ...]:
    """Return the audience of a token whose request names none.

    A client with registered scopes keeps the default audience when it is granted an API: its callers use these scopes.
    """
    if client.audiences:
        return client.audiences[:1]
    return (client.apis[0].identifier if client.apis and not client.scope else policy.default_audience,)


def _allowed_scope(client: Client, targets: Sequence[str], apis: Sequence[GrantedApi]) -> tuple[str, ...]:
    """Return the scopes of all targets: those of each API, and the client's own for any other audience."""
    of_apis = {api.identifier for api in apis}
    has_others = any(target in client.audiences or target not in of_apis for target in targets)
    own = client.scope if has_others else ()
    return tuple(dict.fromkeys([*own, *(token for api in apis for token in api.scope)]))


def _signing_alg(client: Client, targets: Sequence[str], apis: Sequence[GrantedApi], policy: Policy) -> str | None:
    """Return the algorithm that all targets expect; ``None`` for the server's.

    :raises InvalidTarget: they differ.
    """
    expected = {api.signing_alg or policy.signing_alg for api in apis}
    if len(targets) > len(apis):
        expected.add(policy.signing_alg)
    if len(expected) > 1:
        raise InvalidTarget(
            RefusalReason.ALGORITHMS_DIFFER,
            "The resources need different signing algorithms: request one token for each.",
            client_id=client.client_id,
        )
    return None if expected <= {policy.signing_alg} else expected.pop()


def _claims(client: Client, apis: Sequence[GrantedApi]) -> Mapping[str, Any]:
    """Return the claims of the client, and of the APIs in their place.

    :raises InvalidTarget: two APIs differ.
    """
    of_apis: dict[str, Any] = {}
    for api in apis:
        for name, value in api.claims.items():
            if of_apis.setdefault(name, value) != value:
                raise InvalidTarget(
                    RefusalReason.CLAIMS_DIFFER,
                    "The resources differ in their claims: request one token for each.",
                    client_id=client.client_id,
                )
    return {**client.claims, **of_apis} if of_apis else client.claims


def _granted_scope(
    client: Client, scope: str | None, allowed: tuple[str, ...], never_named: Sequence[str]
) -> tuple[str, ...]:
    if scope is None:
        return allowed
    asked = parse_scope(scope)
    if refused := [token for token in asked if token not in allowed]:
        elsewhere = {*client.scope, *(token for api in client.apis for token in api.scope)}
        is_elsewhere = elsewhere.issuperset(refused)
        raise InvalidScope(
            RefusalReason.SCOPE_OF_OTHER_API if is_elsewhere else RefusalReason.SCOPE_NOT_GRANTED,
            f"The client was not granted{' for this API' if is_elsewhere else ''}: {_list_some(refused, never_named)}",
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
    if len(resources) + len(audiences) > MOST_TARGETS:
        raise InvalidTarget(
            RefusalReason.TOO_MANY_RESOURCES,
            f"A request may name at most {MOST_TARGETS} resources.",
            client_id=client.client_id,
        )
    found = _match([*resources, *audiences], [*client.audiences, *(api.identifier for api in client.apis)])
    if refused := [target for target, audience in found.items() if audience is None]:
        raise InvalidTarget(
            RefusalReason.RESOURCE_NOT_GRANTED,
            f"The client was not granted: {_list_some(refused, never_named)}",
            client_id=client.client_id,
        )
    return tuple(dict.fromkeys(audience for audience in found.values() if audience is not None))


def _match(requested: Sequence[str], registered: Sequence[str]) -> dict[str, str | None]:
    """Return the registered audience for each requested one; ``None`` if it is not registered.

    The registered spelling is issued, because verifiers compare ``aud`` byte by byte.
    """
    found: dict[str, str | None] = {target: target for target in requested if target in registered}
    if len(found) < len(set(requested)):
        # If two registered audiences are equivalent, the first one is meant.
        by_form = {_form_of(audience): audience for audience in reversed(registered)}
        found = {target: found.get(target) or by_form.get(normalize(target)) for target in requested}
    return found


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
