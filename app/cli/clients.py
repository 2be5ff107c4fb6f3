"""``flask clients``: the command line of ``app.clients``."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from app.cli.client_certificates import add_certificates, fingerprints, remove_certificate, show_certificates
from app.cli.client_fields import METHOD_NAMES, changed_constraints, field_options, given_fields, parse_labels
from app.cli.client_keys import (
    METHODS_WITH_ASSERTIONS,
    add_keys,
    changed_auth_fields,
    check_new_auth_fields,
    key_file_for,
    published_keys,
    remove_key,
    show_keys,
)
from app.cli.client_secrets import revoke_secret, rotate_secret, show_secrets
from app.cli.client_trusts import add_trust, remove_trust, show_trusts, test_trust
from app.cli.output import (
    CommandGroup,
    Duration,
    json_option,
    print_fields,
    print_json,
    print_json_list,
    print_table,
    read_secret,
    report,
    seconds,
    secret_file_for,
    timestamp,
)
from app.cli.secret_output import METHODS_WITH_SECRETS, describe_secret, warn_of_weak
from app.clients.fields import ClientFields
from app.clients.filters import LEGACY_FOR
from app.clients.repository import ListedClient
from app.clients.secrets import NewSecret
from app.clients.trusts import METHOD as FEDERATED_METHOD
from app.config.values import format_duration
from app.database.models import ClientRow
from app.errors import ManagementError
from app.oauth.client_auth import METHODS
from app.oauth.client_auth.assertions import audience_rule
from app.oauth.client_auth.client_secret import ClientSecretPost
from app.oauth.client_auth.client_secret_jwt import ClientSecretJwt
from app.oauth.client_auth.tls import NAMES as TLS_NAMES
from app.oauth.client_auth.tls import SelfSignedTlsClientAuth, TlsClientAuth
from app.oauth.sender_constraints import SENDER_CONSTRAINTS
from app.services import services
from app.types import ANY_SECRET_METHOD

LIST_COLUMNS = ("client_id", "name", "state", "scope", "audiences", "lifetime", "created", "last_used")
TABLE_ROWS = 1000
"""The longest table that is printed without ``--limit``."""
CACHED_SECONDS = 600
"""A shorter lifetime defeats a cache that replaces tokens five minutes before they expire."""


@click.group("clients", cls=CommandGroup)
def clients() -> None:
    """Create, show, update and delete clients."""


@clients.command("create")
@click.argument("name")
@click.option("--client-id", help="Use this id instead of a generated one.")
@field_options
@click.option("--secret-file", metavar="FILE|-", help="Use the secret in this file instead of a generated one.")
@click.option("--secret-expires", type=Duration(), help="How long the secret is valid. Default: for ever.")
@click.option("--secret-out", metavar="FILE", help="Write the secret to a new file (0600) instead of printing it.")
@click.option("--generate-key", metavar="FILE", help="Generate a key pair; the private half goes to a new file (0600).")
@json_option
def create_client(name: str, generate_key: str | None, *, as_json: bool, **options: Any) -> None:
    """Create a client and print its secret, once."""
    given = given_fields(options)
    method = given.get("token_endpoint_auth_method", ANY_SECRET_METHOD)
    if options["secret_file"] and method not in METHODS_WITH_SECRETS:
        raise ManagementError(f"--secret-file goes with no {method}: its clients have no secret")
    if options["secret_expires"] == 0:
        raise ManagementError("--secret-expires must be 1s or more")
    imported = read_secret(options["secret_file"]) if options["secret_file"] else None
    with key_file_for(generate_key) as pair, secret_file_for(options["secret_out"]) as file:
        auth_fields = given.pop("auth_fields", {}) | ({"jwks": pair.public} if pair else {})
        given["sender_constraints"] = changed_constraints((), given.get("sender_constraints", {}))
        fields = ClientFields(client_name=name, auth_fields=check_new_auth_fields(method, auth_fields), **given)
        published = published_keys(fields.auth_fields)
        registering = services().clients.repository.registering(
            fields,
            client_id=options["client_id"],
            with_secret=method in METHODS_WITH_SECRETS,
            secret=imported,
            secret_expires_after=seconds(options["secret_expires"]),
            key_set=published,
        )
        with registering as (row, secret):
            if file and secret:
                file.write(secret.secret)
            if pair:
                pair.write()
            # Whoever has given a secret has it already; a script gets the object that it expects.
            is_shown = options["secret_out"] is None and (as_json or imported is None)
            _print_new_client(row, secret, shown=is_shown, as_json=as_json)
            if pair:
                report(
                    f"Its private key is in {generate_key}, and nowhere else: docs/client-keys.md shows how to use it."
                )
            _warn(row, imported)


@clients.command("list")
@click.option("--limit", type=click.IntRange(min=1), help="List at most this many. Default on a terminal: 1000.")
@click.option("--name", help="Only clients whose name contains this, in any case.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only clients with this label.")
@click.option("--state", type=click.Choice(["enabled", "disabled"]))
@click.option("--auth-method", type=click.Choice(METHOD_NAMES))
@click.option(
    "--assertion-style",
    type=click.Choice(["legacy"]),
    help="Only clients whose assertions named the token endpoint in the last 30 days.",
)
@click.option("--wasteful", is_flag=True, help="Only clients that get far more tokens than their lifetime requires.")
@click.option("--unused-for", type=Duration(), help="Only clients that were unused for this long.")
@click.option("--secrets-older-than", type=Duration(), help="Only clients with a valid secret of this age.")
@click.option("--expiring-in", type=Duration(), help="Only clients with a secret or certificate that expires by then.")
@json_option
def list_clients(limit: int | None, labels: Sequence[str], state: str | None, *, as_json: bool, **filters: Any) -> None:
    """List clients that pass all filters, oldest first."""
    for name in ("unused_for", "secrets_older_than", "expiring_in"):
        filters[name] = seconds(filters[name])
    filters["wasteful"] = services().settings.access_token_lifetime if filters["wasteful"] else None
    filters |= {"labels": parse_labels(labels), "disabled": None if state is None else state == "disabled"}
    store = services().clients.repository
    if as_json:
        print_json_list(_describe(row) for row in store.stream(limit, **filters))
        return
    if not sys.stdout.isatty():
        print_table(LIST_COLUMNS, map(_list_cells, store.stream(limit, **filters)))
        return
    # Read everything first: no transaction stays open while a person reads.
    rows = [_list_cells(row) for row in store.stream(limit or TABLE_ROWS + 1, **filters)]
    store.end_reading()
    print_table(LIST_COLUMNS, rows[: limit or TABLE_ROWS], pages=True)
    if len(rows) > (limit or TABLE_ROWS):
        report(f"These are the {TABLE_ROWS} oldest: --limit shows more, filters show fewer.")


@clients.command("show")
@click.argument("client_id", metavar="ID")
@json_option
def show_client(client_id: str, *, as_json: bool) -> None:
    """Show one client with its secrets (never the secrets themselves)."""
    row = services().clients.repository.find(client_id)
    tokens = {str(day): tokens for day, tokens in services().clients.usage.read(client_id).items()}
    described = {**_describe(row), "tokens": tokens}
    if as_json:
        print_json(described)
        return
    granted = [f"{api['name']} ({' '.join(api['scope'])})" for api in described["apis"]]
    print_fields({name: value for name, value in described.items() if name != "secrets"} | {"apis": granted})
    for secret in row.secrets:
        report("")
        described = describe_secret(secret, services().clock())
        print_fields({f"secret {name}": value for name, value in described.items()})


@clients.command("update")
@click.argument("client_id", metavar="ID")
@click.option("--name", "client_name")
@field_options
@click.option("--yes", is_flag=True, help="Do it even if assertions that the client sends would be refused.")
@json_option
def update_client(client_id: str, client_name: str | None, *, yes: bool, as_json: bool, **options: Any) -> None:
    """Update a client. Each option replaces the whole field; an empty value clears it."""
    changes = given_fields(options) | ({} if client_name is None else {"client_name": client_name})
    if not changes:
        raise ManagementError("nothing to change: `flask clients update --help` shows what can be")
    given = changes.pop("auth_fields", {})
    constraints = changes.pop("sender_constraints", {})
    if given.get("assertion_audience") == "issuer" and not yes:
        _require_no_legacy_assertion(client_id)

    def decide_changes(before: ClientFields) -> dict[str, Any]:
        method = changes.get("token_endpoint_auth_method", before.token_endpoint_auth_method)
        bound = changed_constraints(before.sender_constraints, constraints)
        return {**changed_auth_fields(before, method, given), "sender_constraints": bound}

    row = services().clients.repository.update(client_id, decide_changes, published_keys(given), **changes)
    if as_json:
        print_json(_describe(row))
    report(f"{row.client_id} was changed. Tokens that it has keep what they say until they expire.")
    if row.token_endpoint_auth_method in METHODS_WITH_SECRETS and not services().clients.secrets.has_usable_secret(row):
        report(
            f"Warning: it has no secret that works with {row.token_endpoint_auth_method}: "
            f"`flask clients rotate-secret {row.client_id}` makes one."
        )
    if "access_token_lifetime" in changes:
        _warn_of_short_lifetime(row)
    if constraints or "token_endpoint_auth_method" in changes:
        _warn_of_missing_settings(row)


def _require_no_legacy_assertion(client_id: str) -> None:
    """Require that the client sent no assertion lately that would be refused from now on."""
    row = services().clients.repository.find(client_id)
    sent_at = row.legacy_assertion_at
    services().clients.repository.end_reading()
    if sent_at is not None and sent_at >= services().clock() - LEGACY_FOR:
        raise ManagementError(
            f"at {timestamp(sent_at)} {client_id} sent an assertion whose aud is the token endpoint, which would be "
            f"refused: let it name {services().settings.issuer} alone, or say --yes"
        )


@clients.command("disable")
@click.argument("client_id", metavar="ID")
def disable_client(client_id: str) -> None:
    """Refuse a client from now on, and revoke its tokens."""
    row = services().clients.repository.disable(client_id)
    report(
        f"{row.client_id} gets no more tokens, and its tokens are revoked: introspection says so at once. "
        "Verifiers that work offline accept them until they expire, or until they read the revocation feed."
    )


@clients.command("enable")
@click.argument("client_id", metavar="ID")
def enable_client(client_id: str) -> None:
    """Enable a disabled client."""
    report(f"{services().clients.repository.enable(client_id).client_id} gets tokens again. Its old ones stay revoked.")


@clients.command("delete")
@click.argument("client_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_client(client_id: str, *, yes: bool) -> None:
    """Delete a client and its secrets. Its id can never be used again."""
    name = services().clients.repository.find(client_id).client_name
    services().clients.repository.end_reading()
    if not yes:
        if not sys.stdin.isatty():
            raise ManagementError(f"deleting {client_id!r} cannot be undone: say --yes")
        click.confirm(f"Delete {client_id} ({name}) for good?", abort=True, err=True)
    services().clients.repository.delete(client_id)
    report(f"{client_id} was deleted.")


for command in (
    show_secrets,
    rotate_secret,
    revoke_secret,
    show_keys,
    add_keys,
    remove_key,
    add_trust,
    show_trusts,
    remove_trust,
    test_trust,
    show_certificates,
    add_certificates,
    remove_certificate,
):
    clients.add_command(command)


def curl_line(token_endpoint: str, client_id: str, secret: str, method: str = ANY_SECRET_METHOD) -> str:
    """Return a shell command that fetches a token, with the client's authentication method."""
    if method == ClientSecretPost.name:
        credentials = ["--data-urlencode", f"client_id={client_id}", "--data-urlencode", f"client_secret={secret}"]
    else:
        credentials = ["-u", f"{client_id}:{secret}"]
    return shlex.join(["curl", *credentials, "-d", "grant_type=client_credentials", token_endpoint])


def _list_cells(row: Any) -> Sequence[object]:
    return (
        row.client_id,
        row.client_name,
        state_of(row),
        " ".join(row.scope),
        " ".join(row.audiences),
        format_duration(row.access_token_lifetime) if row.access_token_lifetime else "default",
        timestamp(row.created_at),
        timestamp(row.last_used_at),
    )


def _warn_of_missing_settings(row: ClientRow) -> None:
    """Warn of a method, or a binding, that cannot work with the settings of this machine."""
    used = {row.token_endpoint_auth_method, *(row.sender_constraints or ())}
    parts: Sequence[Any] = (*METHODS, *SENDER_CONSTRAINTS)
    needed = {name for part in parts if part.name in used for name in part.requires}
    if missing := services().settings.missing(sorted(needed)):
        verb = "are" if len(missing) > 1 else "is"
        report(f"Warning: {row.client_id} gets no token until {' and '.join(missing)} {verb} set: docs/settings.md")


def _warn(row: ClientRow, imported: str | None) -> None:
    _warn_of_missing_settings(row)
    if ":" in row.client_id:
        report("Warning: Basic cannot carry an id with a colon raw: form-encode it, or send it in the body.")
    warn_of_weak(imported)
    _warn_of_short_lifetime(row)


def _warn_of_short_lifetime(row: ClientRow) -> None:
    lifetime = row.access_token_lifetime
    if lifetime is not None and lifetime < CACHED_SECONDS:
        report(
            f"Warning: tokens live for {format_duration(lifetime)}. A caller that replaces them five minutes early, as "
            "many do, asks for one again and again: have it replace them at half of their life."
        )


def _print_new_client(row: ClientRow, secret: NewSecret | None, *, shown: bool, as_json: bool) -> None:
    described = {
        "client_id": row.client_id,
        **({"client_secret": secret.secret} if secret and shown else {}),
        "client_name": row.client_name,
        "token_endpoint_auth_method": row.token_endpoint_auth_method,
        "grant_types": row.grant_types,
        "scope": " ".join(row.scope),
        "audiences": row.audiences,
        "access_token_lifetime": row.access_token_lifetime,
        "client_secret_expires_at": int(secret.expires_at.timestamp()) if secret and secret.expires_at else 0,
    }
    if as_json:
        print_json(described)
        return
    print_fields(described)
    method = row.token_endpoint_auth_method
    if method == FEDERATED_METHOD:
        report(f"\nNext, name its platform: `flask clients trust {row.client_id}`. See docs/platforms.md.")
    if method in {TlsClientAuth.name, SelfSignedTlsClientAuth.name}:
        words = ["curl", "--cert", "client.pem", "--key", "client.key", "-d", f"client_id={row.client_id}"]
        report("\nTry it with its certificate:\n")
        report(f"  {shlex.join([*words, '-d', 'grant_type=client_credentials', _endpoint_for_certificates()])}")
    if secret and shown and method == ClientSecretJwt.name:
        report("\nThe secret is shown this once: docs/client-keys.md shows how to sign with it.")
    elif secret and shown:
        report("\nThe secret is shown this once. Try it:\n")
        endpoint = services().oauth.metadata["token_endpoint"]
        report(f"  {curl_line(endpoint, row.client_id, secret.secret, method)}")


def _endpoint_for_certificates() -> str:
    """Return the token endpoint where the proxy asks for a certificate."""
    metadata = services().oauth.metadata
    endpoint: str = metadata.get("mtls_endpoint_aliases", metadata)["token_endpoint"]
    return endpoint


def _describe(row: ClientRow | ListedClient) -> dict[str, Any]:
    signs = row.token_endpoint_auth_method in METHODS_WITH_ASSERTIONS
    return {
        "client_id": row.client_id,
        "client_name": row.client_name,
        "description": row.description,
        "state": state_of(row),
        "token_endpoint_auth_method": row.token_endpoint_auth_method,
        "grant_types": row.grant_types,
        "scope": " ".join(row.scope),
        "audiences": row.audiences,
        "introspects": row.introspects or [],
        "keys": [key["kid"] for key in (row.auth_fields or {}).get("jwks", {}).get("keys", [])],
        "jwks_uri": (row.auth_fields or {}).get("jwks_uri"),
        "certificates": fingerprints(row.auth_fields),
        **{name: value for name, value in (row.auth_fields or {}).items() if name in TLS_NAMES},
        "assertion_audience": audience_rule(row.auth_fields or {}) if signs else None,
        "assertion_style": {"aud": row.assertion_aud, "typ": row.assertion_typ} if row.assertion_aud else None,
        "legacy_assertion_at": timestamp(row.legacy_assertion_at),
        "access_token_lifetime": row.access_token_lifetime,
        **{one.client_metadata: one.name in (row.sender_constraints or ()) for one in SENDER_CONSTRAINTS},
        "rate_limit": row.rate_limit,
        "contacts": row.contacts,
        "labels": row.labels,
        "claims": row.claims or {},
        "apis": [{name: api[name] for name in ("name", "identifier", "scope")} for api in row.apis or []],
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
        "last_used_at": timestamp(row.last_used_at),
        "limited_at": timestamp(row.limited_at),
        "disabled_at": timestamp(row.disabled_at),
        "tokens_not_before": timestamp(row.tokens_not_before),
        "secrets": [describe_secret(secret, services().clock()) for secret in row.secrets],
    }


def state_of(row: ClientRow | ListedClient) -> str:
    """Return whether a client may get tokens."""
    return "disabled" if row.disabled_at else "enabled"
