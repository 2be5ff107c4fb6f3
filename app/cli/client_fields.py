"""The options for a client's fields, the same for ``flask clients create`` and ``update``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from app.cli.client_certificates import given_tls_fields, tls_options
from app.cli.client_keys import given_auth_fields, key_options
from app.cli.output import Duration
from app.clients.claims import parse_claims
from app.clients.fields import split_scopes
from app.config.values import parse_rate
from app.errors import ManagementError
from app.oauth.client_auth import METHODS
from app.oauth.grants import GRANTS
from app.oauth.sender_constraints import SENDER_CONSTRAINTS
from app.types import ANY_SECRET_METHOD, Rate

NO_GRANT = "none"
METHOD_NAMES = (ANY_SECRET_METHOD, *(method.name for method in METHODS))
GRANT_NAMES = (*(str(grant.GRANT_TYPE) for grant in GRANTS), NO_GRANT)


_SINGLE_VALUES = {
    "lifetime": "access_token_lifetime",
    "rate_limit": "rate_limit",
    "auth_method": "token_endpoint_auth_method",
    "description": "description",
}
_DEFAULTS = {"access_token_lifetime": 0, "rate_limit": ""}
"""Values that stand for the server's default, which is stored as ``None``."""


class Lifetime(Duration):
    """A duration, or ``default`` for the server's own."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse; return 0 for the default, which no lifetime can be."""
        if value == "default":
            return 0
        return super().convert(value, param, ctx) or self.fail("must be from 1s to 24h", param, ctx)


class RateLimit(click.ParamType[Rate | str]):
    """A rate such as ``100/minute``, or ``default`` for the server's own limit."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Rate | str:
        """Parse; return an empty string for the default."""
        if value in {"default", ""}:
            return ""
        try:
            return parse_rate(value)
        except ValueError as error:
            return self.fail(f"{error}; or default", param, ctx)


claim_option = click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="NAME=VALUE",
    help="A claim to add to its tokens; a value that begins with [ or { is JSON.",
)


def field_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for a client's fields, the same for ``create`` and ``update``."""
    for option in reversed(
        (
            click.option(
                "--scope", "scopes", multiple=True, help="Scopes, space-separated; may be given several times."
            ),
            click.option(
                "--audience", "audiences", multiple=True, help="An API its tokens may be for; the first is the default."
            ),
            click.option("--lifetime", type=Lifetime(), help="Lifetime of its tokens: 1s to 24h, or `default`."),
            click.option(
                "--limit",
                "rate_limit",
                type=RateLimit(),
                metavar="RATE",
                help="Its limit of token requests, such as 100/minute, or `default`.",
            ),
            click.option("--auth-method", type=click.Choice(METHOD_NAMES), help="How it authenticates."),
            click.option("--grant-type", "grant_types", multiple=True, type=click.Choice(GRANT_NAMES)),
            click.option(
                "--introspect",
                "introspects",
                multiple=True,
                metavar="URI|'*'",
                help="An API whose tokens it may introspect; * for all.",
            ),
            click.option(
                "--contact",
                "contacts",
                multiple=True,
                help="The team or person responsible, such as payments@example.com.",
            ),
            click.option("--description", help="What it is for."),
            click.option("--label", "labels", multiple=True, metavar="K=V"),
            claim_option,
        )
    ):
        command = option(command)
    for constraint in SENDER_CONSTRAINTS:
        switch = f"--{constraint.option}/--no-{constraint.option}"
        command = click.option(switch, constraint.name, default=None, help=constraint.option_help)(command)
    return key_options(tls_options(command))


def given_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`ClientFields` whose options were given.

    ``sender_constraints`` are for :func:`changed_constraints`.
    """
    fields: dict[str, Any] = {}
    for option, (name, parse) in _SEVERAL_VALUES.items():
        if options[option]:
            fields[name] = parse(options[option])
    for option, name in _SINGLE_VALUES.items():
        if options[option] is not None:
            fields[name] = None if options[option] == _DEFAULTS.get(name) else options[option]
    keys = given_auth_fields(options["jwks_file"], options["jwks_uri"], options["assertion_audience"])
    if auth_fields := keys | given_tls_fields(options):
        fields["auth_fields"] = auth_fields
    if constraints := {one.name: options[one.name] for one in SENDER_CONSTRAINTS if options[one.name] is not None}:
        fields["sender_constraints"] = constraints
    return fields


def changed_constraints(before: Sequence[str], given: Mapping[str, bool]) -> tuple[str, ...]:
    """Return what a client's tokens must be bound to after the options that were ``given``."""
    return tuple(one.name for one in SENDER_CONSTRAINTS if given.get(one.name, one.name in before))


def _grant_types(given: Sequence[str]) -> tuple[str, ...]:
    if NO_GRANT in given:
        if len(set(given)) > 1:
            raise ManagementError(f"--grant-type {NO_GRANT} goes with no other grant type")
        return ()
    return tuple(dict.fromkeys(given))


def parse_labels(given: Sequence[str]) -> dict[str, str]:
    """Parse labels of the form ``K=V``.

    :raises ManagementError: one has no ``=``.
    """
    labels = {}
    for label in filter(None, given):
        key, equals, value = label.partition("=")
        if not equals:
            raise ManagementError(f"label {label!r} must be K=V")
        labels[key] = value
    return labels


def _texts(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, given)))


_SEVERAL_VALUES: Mapping[str, tuple[str, Callable[[Sequence[str]], Any]]] = {
    "scopes": ("scope", split_scopes),
    "audiences": ("audiences", _texts),
    "introspects": ("introspects", _texts),
    "contacts": ("contacts", _texts),
    "grant_types": ("grant_types", _grant_types),
    "labels": ("labels", parse_labels),
    "claims": ("claims", parse_claims),
}
"""Options that may be given several times: the field, and what parses all values."""
