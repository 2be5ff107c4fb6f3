"""``flask tokens``: issue a token for debugging, inspect one as a verifier does, revoke one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import click

from app.audit.events import TokenChanged
from app.audit.outbox import system_user
from app.cli.output import (
    CommandGroup,
    json_option,
    print_fields,
    print_json,
    print_line,
    print_table,
    read_secret,
    report,
    shown,
    timestamp,
)
from app.clients.authentication import to_client
from app.clients.fields import split_scopes
from app.config.values import format_duration
from app.errors import ManagementError, OAuthError, ServiceUnavailable
from app.oauth.grants.client_credentials import ClientCredentialsGrant
from app.oauth.policy import grant
from app.reasons import TokenReason
from app.services import Services, services
from app.tokens.validation import Problem, TokenValidation, from_epoch, validate_token

_MEANINGS = {
    "iss": "who issued it",
    "sub": "the subject: the client itself",
    "client_id": "the client that it was issued to",
    "aud": "its audience: a verifier must be among these",
    "scope": "what it allows",
    "iat": "issued at",
    "exp": "expires at",
    "jti": "its id in the audit log",
    "cnf": "the key that its user must prove to have",
}
_UNKNOWN: Final = "unknown"
_LATEST = 253402300799
"""The last second that a datetime can represent."""


_WHO_KNOWS = "verifiers that work offline do not notice, unless they read the revocation feed."


@click.group("tokens", cls=CommandGroup)
def tokens() -> None:
    """Issue, inspect and revoke access tokens."""


@tokens.command("issue")
@click.argument("client_id", metavar="ID")
@click.option("--scope", "scopes", multiple=True, help="Scopes, space-separated. Default: all of the client.")
@click.option("--resource", "resources", multiple=True, metavar="URI", help="One of the client's audiences.")
@click.option("--audience", "audiences", multiple=True, help="The same, by URI or name.")
@json_option
def issue(
    client_id: str, scopes: Sequence[str], resources: Sequence[str], audiences: Sequence[str], *, as_json: bool
) -> None:
    """Issue a token for the client ID, as the token endpoint would, without its secret. The audit log records it."""
    here = services()
    row = here.clients.repository.find(client_id)
    client = to_client(row)
    if row.disabled_at:
        raise ManagementError(f"{client_id} is disabled: `flask clients enable {client_id}` serves it again")
    if ClientCredentialsGrant.GRANT_TYPE not in client.grant_types:
        raise ManagementError(f"{client_id} may not use {ClientCredentialsGrant.GRANT_TYPE}: it gets no tokens")
    try:
        scope = " ".join(split_scopes(scopes)) or None
        policy = replace(here.oauth.server.policy, reads_audience=True)
        granted = grant(client, scope=scope, resources=resources, audiences=audiences, policy=policy)
        here.oauth.server.delay_after_revocation(client)
        token = here.oauth.server.generate_token(
            ClientCredentialsGrant.GRANT_TYPE,
            client,
            scope=" ".join(granted.scope) or None,
            expires_in=granted.lifetime_seconds,
            audiences=granted.audiences,
            claims=granted.claims,
            signing_alg=granted.signing_alg,
        )
    except OAuthError as error:
        raise ManagementError(f"{error.error}: {error.description}") from None
    # Record it first: no token goes unrecorded.
    here.audit.outbox.put_alone(
        TokenChanged(
            by=system_user(),
            change="issued",
            client_id=client_id,
            jti=token.jti,
            scope=token.get("scope"),
            audience=token.audiences,
            expires_in=token["expires_in"],
        )
    )
    if as_json:
        print_json(token)
    else:
        print_line(token["access_token"])
        report(f"It is valid for {format_duration(granted.lifetime_seconds)}: `flask tokens inspect -` explains it.")


@tokens.command("revoke")
@click.argument("file", required=False)
@click.option("--client", "client_id", metavar="ID", help="Revoke all tokens that this client has.")
def revoke(file: str | None, client_id: str | None) -> None:
    """Revoke the token in FILE (- for standard input), whichever client has it, or all tokens of a client."""
    here = services()
    if (file is None) == (client_id is None):
        raise ManagementError("name a file (- for standard input) or --client ID, and not both")
    if client_id is not None:
        until = here.clients.repository.revoke_tokens(client_id).tokens_not_before
        report(f"All tokens that {client_id} got until {timestamp(until)} are revoked; {_WHO_KNOWS}")
        return
    status = here.tokens.statuses.of_token(_token_in(read_secret(str(file), "token in")))
    if status.claims is None:
        raise ManagementError(f"there is nothing to revoke: {status.reason} (`flask tokens inspect` says more)")
    if status.reason:
        report(f"It is inactive already. {status.reason.meaning}")
        return
    token = status.as_revoked()
    event = TokenChanged(by=system_user(), change="revoked", client_id=token.client_id, jti=token.jti)
    here.tokens.revocations.revoke(token, within=lambda connection: here.audit.outbox.put(connection, event))
    report(f"The token {token.jti} of {token.client_id} is dead; {_WHO_KNOWS}")


@tokens.command("inspect")
@click.argument("file")
@json_option
@click.pass_context
def inspect(context: click.Context, file: str, *, as_json: bool) -> None:
    """Explain the token in FILE (- for standard input), and why it would be refused.

    FILE may contain the token, with or without `Bearer` before it, or the whole response of the token endpoint. The
    exit status is 1 for a token that would be refused.
    """
    here = services()
    now = here.keys.active.now()
    inspection = validate_token(_token_in(read_secret(file, "token in")), here.settings.issuer, here.keys.active(), now)
    revocation = _revocation_reason(here, inspection)
    problems = (Problem(revocation),) if isinstance(revocation, TokenReason) else inspection.problems
    if as_json:
        print_json(
            {
                "good": not problems,
                "faults": [{"reason": problem.reason, "told": problem.message} for problem in problems],
                "revocation_known": revocation != _UNKNOWN,
                "header": inspection.unverified_header,
                "claims": inspection.unverified_claims,
            }
        )
    else:
        if inspection.unverified_header:
            print_fields({name: shown(value) for name, value in inspection.unverified_header.items()})
        if inspection.unverified_claims:
            print_table(("claim", "value", "meaning"), _explained(inspection.unverified_claims, now))
        for problem in problems:
            report(f"Refused: {problem.message}")
        if not problems:
            report("Valid: verifiers in its audience accept it.")
        if revocation == _UNKNOWN:
            report("Whether it was revoked is unknown: the database does not respond.")
        elif revocation:
            report(f"Introspection says so; {_WHO_KNOWS}")
    context.exit(1 if problems else 0)


def _token_in(text: str) -> str:
    """Return the token in the text."""
    text = text.strip()
    if text.startswith("{"):
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        token = answer.get("access_token") if isinstance(answer, dict) else None
        return token.strip() if isinstance(token, str) else text
    scheme, _, rest = text.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else text


def _revocation_reason(here: Services, inspection: TokenValidation) -> TokenReason | Literal["unknown"] | None:
    """Return why a valid token is revoked, if the database says so."""
    if not inspection.is_good:
        return None
    try:
        return here.tokens.statuses.of_validated(inspection).reason
    except ServiceUnavailable:
        return _UNKNOWN


def _explained(claims: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, str, str]]:
    for name, value in claims.items():
        meaning = _MEANINGS.get(name, "a claim by configuration, if the token is ours")
        if name in {"iat", "exp"} and type(value) is int and 0 <= value <= _LATEST:
            yield name, str(value), f"{meaning} {timestamp(from_epoch(value))}, {_distance(from_epoch(value) - now)}"
        else:
            yield name, shown(value), meaning


def _distance(difference: timedelta) -> str:
    seconds = int(difference.total_seconds())
    text = str(timedelta(seconds=abs(seconds)))
    return f"in {text}" if seconds > 0 else f"{text} ago"
