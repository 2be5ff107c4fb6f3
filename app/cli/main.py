"""The ``flask`` command of this project: Flask's own with our help. ``python -m flask`` works as well."""

import click
from flask.cli import FlaskGroup

from app.cli import COMMANDS

HELP = """Tokenhouse: clients, signing keys and the database of this token server.

Works on the installation that TOKENHOUSE_… variables, or the settings of the last `make run` in this folder, describe.
"""


class Commands(FlaskGroup):
    """Knows its commands without the application, which is created when one runs: help needs no settings."""

    def __init__(self) -> None:
        super().__init__(name="flask", help=HELP)
        for command in COMMANDS:
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, Flask's included."""
        return click.Group.list_commands(self, ctx)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return one command."""
        return click.Group.get_command(self, ctx, name)


cli = Commands()


def main() -> None:
    """Run a command."""
    cli.main()
