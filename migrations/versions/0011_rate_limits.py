"""Add rate limits of clients, and when they were last limited."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("rate_limit", sa.String(32), nullable=True))
    op.add_column("clients", sa.Column("limited_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_clients_limited_at", "clients", ["limited_at"])


def downgrade() -> None:
    op.drop_index("ix_clients_limited_at", "clients")
    op.drop_column("clients", "limited_at")
    op.drop_column("clients", "rate_limit")
