"""Add clients that authenticate with a key of their own, and the assertions they have used."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("auth_fields", sa.JSON(), nullable=True))
    op.create_table(
        "used_assertions",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("exp", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_used_assertions"),
    )
    op.create_index("ix_used_assertions_exp", "used_assertions", ["exp"])


def downgrade() -> None:
    op.drop_table("used_assertions")
    op.drop_column("clients", "auth_fields")
