"""The ``flask`` command of this project: Flask's own, which says what it is for here; as ``python -m flask`` does."""

from flask.cli import FlaskGroup

HELP = """Tokenhouse: clients, signing keys and the database of this token server.

Works on the installation that TOKENHOUSE_… variables, or the settings of the last `make run` in this folder, describe.
"""

cli = FlaskGroup(name="flask", help=HELP)


def main() -> None:
    """Run a command."""
    cli.main()
