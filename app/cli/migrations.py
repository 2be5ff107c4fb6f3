"""``flask db``: Flask-Migrate's commands, imported when one is used: Alembic takes 0.25 s."""

from typing import Any

import click
from flask.cli import ScriptInfo

from app.config.values import PROJECT_FOLDER
from app.database.models import db as database


class Migrations(click.Command):
    """A placeholder for Flask-Migrate's group."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Let the real group parse its arguments."""
        from flask_migrate import Migrate  # noqa: PLC0415
        from flask_migrate.cli import db as group  # type: ignore[import-not-found]  # noqa: PLC0415

        assert parent  # noqa: S101 - It is a command of `flask`.
        if "--help" in args:
            # The group would create the application before its command prints help.
            group.callback = lambda **_: None
        else:
            app = parent.ensure_object(ScriptInfo).load_app()
            if "migrate" not in app.extensions:
                Migrate(app, database, directory=str(PROJECT_FOLDER / "migrations"))
        made: click.Context = group.make_context(info_name, args, parent=parent, **extra)
        return made


db = Migrations("db", help="Upgrade or downgrade the database.")
