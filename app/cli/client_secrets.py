"""``flask clients secrets``, ``rotate-secret``, ``revoke-secret``: the command line of ``app.clients.secrets``."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import click
from flask.cli import with_appcontext

from app.cli.output import (
    Duration,
    json_option,
    print_fields,
    print_json,
    print_table,
    read_secret,
    report,
    seconds,
    secret_file_for,
    timestamp,
)
from app.cli.secret_output import METHODS_WITH_SECRETS, describe_secret, warn_of_weak
from app.clients.secrets import NewSecret
from app.config.values import DAY, IdentifiedKey
from app.database.models import ClientSecretRow, ClientSecretUseRow
from app.errors import ManagementError
from app.services import services

DEFAULT_OVERLAP_SECONDS = 7 * DAY
DEFAULT_QUIET_SECONDS = 30 * 60 * 60


@click.command("secrets")
@click.argument("client_id", metavar="ID", required=False)
@click.option("--by-pepper", is_flag=True, help="Count valid secrets by the pepper of their digest.")
@click.option("--by-encryption-key", is_flag=True, help="Count valid encrypted secrets by their encryption key.")
@json_option
@with_appcontext
def show_secrets(client_id: str | None, *, by_pepper: bool, by_encryption_key: bool, as_json: bool) -> None:
    """Show a client's secrets: creation, expiry, last use and source addresses, never the secrets themselves."""
    if by_pepper and by_encryption_key:
        raise ManagementError("--by-pepper and --by-encryption-key count different secrets: give one of them")
    here = services()
    if by_pepper:
        counted = here.clients.secrets.count_by_pepper(client_id)
        _show_counted("pepper", here.settings.secret_peppers, counted, as_json=as_json)
        return
    if by_encryption_key:
        counted = here.clients.secrets.count_by_encryption_key(client_id)
        _show_counted("encryption_key", here.settings.encryption_keys, counted, as_json=as_json)
        return
    if client_id is None:
        raise ManagementError("say whose secrets: `flask clients secrets ID`, or --by-pepper")
    uses = here.clients.secrets.uses(client_id)
    rows = [
        describe_secret(secret, here.clock()) | {"used_from": list(map(_describe_use, uses.get(secret.secret_id, [])))}
        for secret in here.clients.repository.find(client_id).secrets
    ]
    if as_json:
        print_json(rows)
        return
    columns = ("id", "last_four", "state", "created_at", "expires_at", "last_used_at", "revoked_at")
    cells = [
        [*(row[name] for name in columns), ", ".join(use["source_address"] for use in row["used_from"])] for row in rows
    ]
    print_table((*columns, "used_from"), cells)


@click.command("rotate-secret")
@click.argument("client_id", metavar="ID")
@click.option("--overlap", type=Duration(), help="How long the older secrets stay valid. Default: 7d.")
@click.option("--secret-file", metavar="FILE|-", help="Use the secret in this file instead of a generated one.")
@click.option("--secret-expires", type=Duration(), help="How long the new secret is valid. Default: for ever.")
@click.option("--secret-out", metavar="FILE", help="Write the secret to a new file (0600) instead of printing it.")
@click.option("--finish", is_flag=True, help="Create none; retire the older ones, if they are unused.")
@click.option("--quiet", type=Duration(), help="With --finish: unused for how long. Default: 30h.")
@json_option
@with_appcontext
def rotate_secret(  # noqa: PLR0913, PLR0917 - The options of the contract.
    client_id: str,
    overlap: int | None,
    secret_file: str | None,
    secret_expires: int | None,
    secret_out: str | None,
    quiet: int | None,
    *,
    finish: bool,
    as_json: bool,
) -> None:
    """Create a new secret. The older ones stay valid for a while: then --finish retires them when they are unused."""
    if finish:
        if secret_file or secret_expires is not None or secret_out:
            raise ManagementError(
                "--finish makes no secret: --secret-file, --secret-expires and --secret-out do not go with it"
            )
        silence = next(time for time in (quiet, overlap, DEFAULT_QUIET_SECONDS) if time is not None)
        _finish(client_id, timedelta(seconds=silence), as_json=as_json)
        return
    if quiet is not None:
        raise ManagementError("--quiet goes with --finish")
    if secret_expires == 0:
        raise ManagementError("--secret-expires must be 1s or more")
    method = services().clients.repository.find(client_id).token_endpoint_auth_method
    if method not in METHODS_WITH_SECRETS:
        raise ManagementError(f"{client_id!r} authenticates by {method}, which has no secrets")
    imported = read_secret(secret_file) if secret_file else None
    rotating = services().clients.secrets.rotating(
        client_id,
        overlap=timedelta(seconds=DEFAULT_OVERLAP_SECONDS if overlap is None else overlap),
        secret=imported,
        expires_after=seconds(secret_expires),
    )
    with secret_file_for(secret_out) as file, rotating as (new, older):
        if file:
            file.write(new.secret)
        # Whoever has given a secret has it already; a script gets the object that it expects.
        is_shown = secret_out is None and (as_json or imported is None)
        _print_rotation(client_id, new, older, shown=is_shown, as_json=as_json)
        warn_of_weak(imported)


@click.command("revoke-secret")
@click.argument("client_id", metavar="ID")
@click.argument("secret_id")
@json_option
@with_appcontext
def revoke_secret(client_id: str, secret_id: str, *, as_json: bool) -> None:
    """Revoke one secret now."""
    row, left = services().clients.secrets.revoke(client_id, secret_id)
    report(f"{secret_id} (…{row.last_four}) is revoked.")
    if not left:
        report(f"Warning: {client_id} has no secret that works: `flask clients rotate-secret` makes one.")
    if as_json:
        print_json(describe_secret(row, services().clock()))


def _show_counted(what: str, keys: Sequence[IdentifiedKey], counted: Mapping[str, int], *, as_json: bool) -> None:
    """Show how many secrets depend on each key: which keys may leave the settings, and which must come back.

    :param what: ``pepper`` or ``encryption_key``.
    """
    known = [key.id for key in keys]
    states = dict.fromkeys(known, "old") | dict.fromkeys(known[:1], "newest")
    rows = [
        {f"{what}_id": key_id, "secrets": count, "state": states.get(key_id, "missing")}
        for key_id, count in counted.items()
    ]
    if as_json:
        print_json(rows)
        return
    print_table((f"{what}_id", "secrets", "state"), [list(row.values()) for row in rows])
    if any(row["state"] == "missing" for row in rows):
        variable = "TOKENHOUSE_SECRET_PEPPERS" if what == "pepper" else "TOKENHOUSE_ENCRYPTION_KEYS"
        report(f"Warning: secrets of a missing {what.replace('_', ' ')} are refused until {variable} has it again.")


def _finish(client_id: str, silence: timedelta, *, as_json: bool) -> None:
    retired = services().clients.secrets.finish(client_id, silence)
    now = services().clock()
    if as_json:
        print_json([describe_secret(secret, now) for secret in retired])
    for secret in retired:
        report(f"{secret.secret_id} (…{secret.last_four}) is revoked.")
    if not retired:
        report(f"{client_id} has no older secret that works: there is nothing to finish.")
    elif not any(
        left.last_used_at for left in services().clients.repository.find(client_id).secrets if not left.revoked_at
    ):
        report("Warning: the secret that is left has never been used.")


def _print_rotation(
    client_id: str, new: NewSecret, older: Sequence[ClientSecretRow], *, shown: bool, as_json: bool
) -> None:
    ends = int(new.expires_at.timestamp()) if new.expires_at else 0
    described: dict[str, Any] = {
        "client_id": client_id,
        **({"client_secret": new.secret} if shown else {}),
        "secret_id": new.secret_id,
        "client_secret_expires_at": ends,
    }
    if as_json:
        now = services().clock()
        print_json(described | {"older_secrets": [describe_secret(secret, now) for secret in older]})
        return
    print_fields(described)
    if shown:
        report("\nThe secret is shown this once.")
    for secret in older:
        report(f"{secret.secret_id} (…{secret.last_four}) works until {timestamp(secret.expires_at)}.")


def _describe_use(use: ClientSecretUseRow) -> dict[str, Any]:
    return {
        "source_address": use.source_address,
        "first_used_at": timestamp(use.first_used_at),
        "last_used_at": timestamp(use.last_used_at),
    }
