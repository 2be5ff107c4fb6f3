"""Add how many tokens each client got on each day."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "client_usage",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "client_id", name="pk_client_usage"),
    )


def downgrade() -> None:
    op.drop_table("client_usage")
