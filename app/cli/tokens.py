"""``flask tokens``: look at an access token as a verifier does, and say what it means."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from app.cli.output import (
    CommandGroup,
    json_option,
    print_fields,
    print_json,
    print_table,
    read_secret,
    tell,
    timestamp,
)
from app.inspection import Inspection, inspect_token, moment
from app.services import Services, services

_MEANINGS = {
    "iss": "who issued it",
    "sub": "on whose behalf: the client itself",
    "client_id": "the client that it was issued to",
    "aud": "whom it is for: whoever verifies it must be among these",
    "scope": "what it allows",
    "iat": "issued at",
    "exp": "good until",
    "jti": "its own id, by which the audit log knows it",
    "cnf": "the key that whoever uses it must prove to have",
}
_LATEST = 253402300799
"""The last second that a datetime can say."""


@click.group("tokens", cls=CommandGroup)
def tokens() -> None:
    """Look at access tokens."""


@tokens.command("inspect")
@click.argument("file")
@json_option
@click.pass_context
def inspect(context: click.Context, file: str, *, as_json: bool) -> None:
    """Say what the token in FILE (- for standard input) means, and why it would be refused.

    FILE may hold the token, with `Bearer` before it or not, or the whole answer of the token endpoint. The exit status
    is 1 for a token that would be refused.
    """
    here = services()
    now = here.ring.now()
    inspection = inspect_token(_token_in(read_secret(file, "token in")), here.settings.issuer, here.ring(), now)
    client = _client_of(here, inspection)
    if as_json:
        print_json(
            {
                "good": inspection.is_good,
                "faults": [{"reason": fault.reason, "told": fault.told} for fault in inspection.faults],
                "client": client,
                "header": inspection.unverified_header,
                "claims": inspection.unverified_claims,
            }
        )
    else:
        if inspection.unverified_header:
            print_fields({name: _shown(value) for name, value in inspection.unverified_header.items()})
        if inspection.unverified_claims:
            print_table(("claim", "value", "meaning"), _explained(inspection.unverified_claims, now))
        for fault in inspection.faults:
            tell(f"Refused: {fault.told}")
        if inspection.is_good:
            tell("Good: whoever it is for accepts it.")
        if client in {"disabled", "deleted", "unknown"}:
            tell(f"Its client is {client}; verifiers that work offline do not know.")
    context.exit(0 if inspection.is_good else 1)


def _token_in(text: str) -> str:
    """The token itself, of what people have at hand."""
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


def _client_of(here: Services, inspection: Inspection) -> str | None:
    """What has become of the client of a good token, as ``ClientStore.state_of`` has it, if the database says it."""
    client_id = (inspection.unverified_claims or {}).get("client_id")
    if not inspection.is_good or not isinstance(client_id, str):
        return None
    try:
        return here.clients.state_of(client_id)
    except SQLAlchemyError:
        return None


def _explained(claims: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, str, str]]:
    for name, value in claims.items():
        meaning = _MEANINGS.get(name, "a claim that we do not make")
        if name in {"iat", "exp"} and type(value) is int and 0 <= value <= _LATEST:
            yield name, str(value), f"{meaning} {timestamp(moment(value))}, {_distance(moment(value) - now)}"
        else:
            yield name, _shown(value), meaning


def _distance(difference: timedelta) -> str:
    seconds = int(difference.total_seconds())
    text = str(timedelta(seconds=abs(seconds)))
    return f"in {text}" if seconds > 0 else f"{text} ago"


def _shown(value: object) -> str:
    """As JSON where it is no text; what could steer a terminal is escaped."""
    is_plain = isinstance(value, str) and value.isprintable()
    return str(value) if is_plain else json.dumps(value)
