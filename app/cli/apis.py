"""``flask apis``: the command line of ``app.apis``."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from app.apis.fields import ApiFields, can_have_document
from app.apis.usage import THE_API, is_unused, unused_scopes
from app.cli.client_fields import Lifetime, claim_option
from app.cli.clients import state_of
from app.cli.output import CommandGroup, json_option, print_fields, print_json, print_table, report, timestamp
from app.clients.claims import parse_claims
from app.clients.fields import split_scopes
from app.config.values import format_duration
from app.crypto.algorithms import ALGORITHMS
from app.database.models import ApiGrantRow, ApiRow, ClientRow
from app.errors import ManagementError
from app.oauth.endpoints.protected_resources import api_document_url
from app.services import services


@click.group("apis", cls=CommandGroup)
def apis() -> None:
    """Create, show, update and delete APIs, and grant them to clients."""


def _field_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that ``create`` and ``update`` share."""
    for option in reversed(
        (
            click.option("--scope", "scopes", multiple=True, help="Its scopes, space-separated; may be repeated."),
            click.option("--lifetime", type=Lifetime(), help="Lifetime of its tokens: 1s to 24h, or `default`."),
            click.option(
                "--signing-alg",
                type=click.Choice([*ALGORITHMS, "default"]),
                help="The algorithm that signs its tokens. Default: the server's.",
            ),
            click.option("--owner", help="The team or person responsible, such as orders@example.com."),
            claim_option,
            click.option(
                "--document/--no-document",
                "publishes_document",
                default=None,
                help="Publish its metadata (RFC 9728). Default: for an https URL.",
            ),
        )
    ):
        command = option(command)
    return command


def _given_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`ApiFields` whose options were given."""
    fields: dict[str, Any] = {}
    if options["scopes"]:
        fields["scope"] = split_scopes(options["scopes"])
    if options["claims"]:
        fields["claims"] = parse_claims(options["claims"])
    if options["lifetime"] is not None:
        fields["access_token_lifetime"] = options["lifetime"] or None
    if options["signing_alg"] is not None:
        fields["signing_alg"] = None if options["signing_alg"] == "default" else options["signing_alg"]
    for name in ("owner", "publishes_document"):
        if options[name] is not None:
            fields[name] = options[name]
    return fields


@apis.command("create")
@click.argument("name")
@click.option("--identifier", required=True, metavar="URI-OR-NAME", help="The aud of its tokens.")
@_field_options
@json_option
def create_api(name: str, identifier: str, *, as_json: bool, **options: Any) -> None:
    """Create an API, which clients can then be granted."""
    fields = {"publishes_document": can_have_document(identifier), **_given_fields(options)}
    row = services().apis.repository.create(ApiFields(name=name, identifier=identifier, **fields))
    if as_json:
        print_json(_describe(row, 0))
        _warn_of_missing_key(row)
        return
    print_fields(_describe(row, 0))
    _warn_of_missing_key(row)
    report(f"\nLet a client call it: `flask apis grant {shlex.quote(name)} CLIENT`.")


@apis.command("list")
@json_option
def list_apis(*, as_json: bool) -> None:
    """List all APIs, by name."""
    found = services().apis.repository.list_all()
    if as_json:
        print_json([_describe(row, callers) for row, callers in found])
        return
    columns = ("name", "identifier", "scope", "lifetime", "owner", "callers")
    print_table(
        columns,
        [(row.name, row.identifier, " ".join(row.scope), _lifetime(row), row.owner, callers) for row, callers in found],
    )


@apis.command("show")
@click.argument("api")
@json_option
def show_api(api: str, *, as_json: bool) -> None:
    """Show one API, by its name or identifier."""
    repository = services().apis.repository
    row = repository.find(api)
    described = _describe(row, repository.count_callers(row.name))
    (print_json if as_json else print_fields)(described)


@apis.command("update")
@click.argument("api")
@click.option("--identifier", metavar="URI-OR-NAME", help="Another aud for its tokens.")
@click.option("--add-scope", "added", multiple=True, help="Scopes that it gets.")
@click.option("--remove-scope", "removed", multiple=True, help="Scopes that it loses, and so do its callers.")
@_field_options
@json_option
def update_api(
    api: str, identifier: str | None, added: Sequence[str], removed: Sequence[str], *, as_json: bool, **options: Any
) -> None:
    """Update an API. Each option replaces the whole field; an empty value clears it."""
    changes = _given_fields(options) | ({} if identifier is None else {"identifier": identifier})
    if not (changes or added or removed):
        raise ManagementError("nothing to change: `flask apis update --help` shows what can be")

    def decide_changes(before: ApiFields) -> dict[str, Any]:
        scope = changes.get("scope", before.scope)
        gone = set(split_scopes(removed))
        if unknown := gone.difference(scope):
            raise ManagementError(f"API {before.name!r} has no scope {' '.join(sorted(unknown))}")
        kept = [token for token in [*scope, *split_scopes(added)] if token not in gone]
        return {**changes, "scope": tuple(dict.fromkeys(kept))}

    repository = services().apis.repository
    row = repository.update(api, decide_changes)
    if as_json:
        print_json(_describe(row, repository.count_callers(row.name)))
    report(f"{row.name} was changed. Tokens that exist stay as they are until they expire.")
    _warn_of_missing_key(row)


@apis.command("delete")
@click.argument("api")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_api(api: str, *, yes: bool) -> None:
    """Delete an API. Its callers get no more tokens for it."""
    repository = services().apis.repository
    name = repository.find(api).name
    callers = repository.count_callers(name)
    services().clients.repository.end_reading()
    clients = "1 client gets" if callers == 1 else f"{callers} clients get"
    if not yes:
        if not sys.stdin.isatty():
            raise ManagementError(f"{clients} no more tokens for {name!r}: say --yes")
        click.confirm(f"Delete {name}? {clients} no more tokens for it.", abort=True, err=True)
    repository.delete(name)
    report(f"{name} was deleted. {clients} no more tokens for it; those that exist are valid until they expire.")


@apis.command("grant")
@click.argument("api")
@click.argument("client_id", metavar="CLIENT")
@click.option("--scope", "scopes", multiple=True, help="Scopes, space-separated. Default: all that the API has now.")
@json_option
def grant_api(api: str, client_id: str, scopes: Sequence[str], *, as_json: bool) -> None:
    """Let a client get tokens for an API, with these scopes instead of earlier ones."""
    before = services().clients.repository.find(client_id)
    got_default = not (before.scope or before.audiences or before.apis) and before.last_used_at is not None
    services().clients.repository.end_reading()
    row = services().apis.repository.grant(api, client_id, split_scopes(scopes) if scopes else None)
    if as_json:
        print_json(_describe_grant(row))
    scope = f"with {' '.join(row.scope)}" if row.scope else "without scopes"
    report(f"{client_id} gets tokens for {row.api_name} {scope} from now on.")
    if got_default:
        report(f"Warning: its requests that name no resource get a token for {row.api_name} from now on.")


@apis.command("revoke-grant")
@click.argument("api")
@click.argument("client_id", metavar="CLIENT")
def revoke_grant(api: str, client_id: str) -> None:
    """Stop a client from getting tokens for an API."""
    services().apis.repository.revoke_grant(api, client_id)
    report(
        f"{client_id} gets no more tokens for {api}. Those that it has are valid until they expire: "
        f"`flask tokens revoke --client {client_id}` revokes them."
    )


@apis.command("callers")
@click.argument("api")
@click.option("--unused-scopes", is_flag=True, help="Only clients with a scope that they did not use in 90 days.")
@json_option
def list_callers(api: str, *, unused_scopes: bool, as_json: bool) -> None:
    """List the clients that may call an API."""
    found = [_describe_caller(client, grant) for client, grant in services().apis.repository.callers(api)]
    if unused_scopes:
        found = [caller for caller in found if caller["unused_scopes"] or caller["is_unused"]]
    if as_json:
        print_json(found)
        return
    names = ("client_id", "client_name", "state", "scope", "unused_scopes", "granted_at", "last_used_on")
    columns = ("client_id", "name", "state", "scope", "unused_scopes", "granted", "last_used")
    print_table(columns, [[caller[name] for name in names] for caller in found])


def _warn_of_missing_key(row: ApiRow) -> None:
    here = services()
    alg = row.signing_alg
    if alg is None or alg == here.settings.signing_alg:
        return
    ring, now = here.keys.manager.backend.read(), here.clock()
    if alg not in {key.alg for key in ring.usable(now)}:
        report(f"Warning: no client gets a token for {row.name} yet: {ring.why_none_signs(now, alg)}.")


def _describe(row: ApiRow, callers: int) -> dict[str, Any]:
    return {
        "name": row.name,
        "identifier": row.identifier,
        "scope": " ".join(row.scope),
        "access_token_lifetime": row.access_token_lifetime,
        "signing_alg": row.signing_alg,
        "owner": row.owner,
        "claims": row.claims or {},
        "document": api_document_url(services().settings.issuer, row.name) if row.publishes_document else None,
        "callers": callers,
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
    }


def _describe_grant(row: ApiGrantRow) -> dict[str, Any]:
    return {
        "api": row.api_name,
        "client_id": row.client_id,
        "scope": " ".join(row.scope),
        "granted_at": timestamp(row.granted_at),
    }


def _describe_caller(client: ClientRow, grant: ApiGrantRow) -> dict[str, Any]:
    return {
        **_describe_grant(grant),
        "client_name": client.client_name,
        "state": state_of(client),
        "last_used_on": grant.used.get(THE_API),
        "unused_scopes": " ".join(unused_scopes(grant, services().clock().date())),
        "is_unused": is_unused(grant, services().clock().date()),
    }


def _lifetime(row: ApiRow) -> str:
    return format_duration(row.access_token_lifetime) if row.access_token_lifetime else "default"
