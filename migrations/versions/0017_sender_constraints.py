"""Add what the tokens of a client must be bound to."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("sender_constraints", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("clients", "sender_constraints")
