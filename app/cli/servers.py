"""``flask servers``: the servers that use this database, as each records itself once a minute."""

from typing import Any

import click
from flask.cli import with_appcontext

from app.cli.output import SingleCommand, json_option, print_json, print_table, report, timestamp
from app.operations.doctor_servers import registry_of
from app.operations.servers import differences, is_running
from app.services import services

COLUMNS = ("name", "host", "port", "version", "started", "seen", "state", "ring", "other settings")


@click.command("servers", cls=SingleCommand)
@json_option
@with_appcontext
def servers(*, as_json: bool) -> None:
    """List the servers that use this database, with the settings that differ from those of this command.

    A server that has not been seen for four minutes is silent: it ended, or cannot reach the database. It is forgotten
    after seven days.
    """
    here = services()
    found = [_described(row) for row in registry_of(here).servers()]
    if as_json:
        print_json(found)
        return
    print_table(COLUMNS, ([_cell(one[column]) for column in COLUMNS] for one in found))
    if not found:
        report("No server has recorded itself within seven days.")


def _described(row: Any) -> dict[str, Any]:
    here = services()
    return {
        "server_id": row.server_id,
        "name": row.name,
        "host": row.host,
        "port": row.port,
        "version": row.version,
        "started": timestamp(row.started_at),
        "seen": timestamp(row.seen_at),
        "state": "running" if is_running(row, here.clock()) else "silent",
        "ring": row.ring,
        "other settings": differences(row, here.settings),
    }


def _cell(value: object) -> object:
    return " ".join(value) if isinstance(value, list) else value
