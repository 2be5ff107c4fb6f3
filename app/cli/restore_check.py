"""``flask restore-check``: after a restore, do again what the backup has undone."""

from collections.abc import Sequence
from pathlib import Path

import click
from flask.cli import with_appcontext

from app.cli.output import SingleCommand, json_option, print_json, print_line, report
from app.errors import ManagementError
from app.operations.doctor_servers import registry_of
from app.operations.restore_check import find_differences, read_trail
from app.services import services

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("restore-check", cls=SingleCommand)
@click.option("--audit", "logs", metavar="FILE…", multiple=True, required=True, type=_FILE, help="The audit log.")
@click.argument("more", metavar="[FILE]...", nargs=-1, type=_FILE)
@click.option("--dry-run", is_flag=True, help="Only compare. Exits with status 1 if anything is missing.")
@json_option
@with_appcontext
@click.pass_context
def restore_check(
    context: click.Context, logs: Sequence[Path], more: Sequence[Path], *, dry_run: bool, as_json: bool
) -> None:
    """Compare a restored database with the audit log since the backup, and do again what is missing.

    Keys and tokens that were revoked, clients that were disabled or deleted, and secrets that were ended are so again.
    What was created since is lost, and is named. Stop all servers first. Give all files that the log was rotated to.
    """
    here = services()
    found = list(find_differences(here, read_trail([*logs, *more])))
    failed = False
    rows = []
    for one in found:
        outcome = "lost" if one.repeat is None else "missing" if dry_run else "repeated"
        if one.repeat and not dry_run:
            try:
                one.repeat()
            except ManagementError as error:
                outcome, failed = f"failed: {error}", True
        rows.append({"what": one.what, "outcome": outcome})
        if not as_json:
            print_line(f"{outcome}: {one.what}")
    if as_json:
        print_json(rows)
    if not found:
        report("The database has everything that the log says.")
    if not dry_run and not failed:
        registry_of(here).mark_checked()
    if failed or (dry_run and any(one.repeat for one in found)):
        context.exit(1)
