"""``flask keys``: make and look at signing keys. States and times are settled by ``keyring``."""

from datetime import datetime
from typing import Any

import click

from app.cli.output import CommandGroup, json_option, print_json, print_table, tell, timestamp
from app.errors import ManagementError
from app.keyring.file import public_pem
from app.keyring.ring import Ring, SigningKey, earliest_safe_time
from app.services import Services, services

CLOCK_SKEW_SECONDS = 60
"""How far the clocks of verifiers may be off."""


@click.group("keys", cls=CommandGroup)
def keys() -> None:
    """Make and look at signing keys."""


@keys.command("list")
@json_option
def list_keys(*, as_json: bool) -> None:
    """Show all keys, with their states and times."""
    ring = _ring_or_none(services())
    rows = [_describe(ring, key, services().clock()) for key in ring.keys] if ring else []
    if as_json:
        print_json(rows)
        return
    print_table(("kid", "alg", "state", "published_at", "signs_from"), (list(row.values())[:5] for row in rows))


@keys.command("generate")
@json_option
def generate_key(*, as_json: bool) -> None:
    """Make a key. The first signs at once; a further one is announced first, until every verifier knows it."""
    here = services()
    now = here.clock().replace(microsecond=0)
    first = here.ring.home.is_empty()
    signs_from = now if first else _announced_until(here, now)
    key = here.ring.home.generate(published_at=now, signs_from=signs_from)
    tell(f"{key.kid} signs from {timestamp(signs_from)} on. A running server knows it after a restart.")
    if as_json:
        print_json(_describe(here.ring.home.read(), key, now))


# One key in 64 has a thumbprint that begins with a hyphen.
@keys.command("export", context_settings={"ignore_unknown_options": True})
@click.argument("kid")
def export_key(kid: str) -> None:
    """Print a key's public half as PEM."""
    ring = services().ring()
    found = [key for key in ring.keys if key.kid == kid]
    if not found:
        raise ManagementError(f"there is no key {kid!r}: `flask keys list` shows all")
    click.echo(public_pem(found[0]), nl=False)


def _announced_until(here: Services, now: datetime) -> datetime:
    return earliest_safe_time(
        now,
        announce_seconds=here.settings.key_announce,
        jwks_max_age_seconds=here.settings.jwks_max_age,
        skew_seconds=CLOCK_SKEW_SECONDS,
    )


def _ring_or_none(here: Services) -> Ring | None:
    return None if here.ring.home.is_empty() else here.ring()


def _describe(ring: Ring, key: SigningKey, now: datetime) -> dict[str, Any]:
    return {
        "kid": key.kid,
        "alg": key.alg,
        "state": str(ring.state_of(key, now)),
        "published_at": timestamp(key.published_at),
        "signs_from": timestamp(key.signs_from),
        "revoked_at": timestamp(key.revoked_at),
        "bits": key.private_key.key_size,
    }
