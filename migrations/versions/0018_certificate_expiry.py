"""Record when the first of a client's certificates expires."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("certificate_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_clients_certificate_expires_at", "clients", ["certificate_expires_at"])


def downgrade() -> None:
    op.drop_index("ix_clients_certificate_expires_at", "clients")
    op.drop_column("clients", "certificate_expires_at")
