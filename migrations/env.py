"""Runs the migrations with Alembic: in the application's own database, each in its own transaction."""

from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from app.database.engine import explain, migrating
from app.database.models import db


def run_migrations() -> None:
    """Apply the missing migrations.

    Flask-Migrate's own arguments make Alembic compare types, and copy tables on SQLite.
    """
    with migrating(db.engine) as connection:
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            transaction_per_migration=True,
            **current_app.extensions["migrate"].configure_args,
        )
        with context.begin_transaction():
            context.run_migrations()


try:
    run_migrations()
except OSError as error:
    raise CommandError(f"the database cannot be made: {error.filename}: {error.strerror}") from None
except SQLAlchemyError as error:
    raise CommandError(explain(error)) from None
