"""Add the claims that operators add to the tokens of a client."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("claims", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("clients", "claims")
