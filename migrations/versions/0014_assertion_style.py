"""Record what the assertions of each client look like."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("assertion_aud", sa.String(16), nullable=True))
    op.add_column("clients", sa.Column("assertion_typ", sa.String(32), nullable=True))
    op.add_column("clients", sa.Column("legacy_assertion_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_clients_legacy_assertion_at", "clients", ["legacy_assertion_at"])


def downgrade() -> None:
    op.drop_index("ix_clients_legacy_assertion_at", "clients")
    op.drop_column("clients", "legacy_assertion_at")
    op.drop_column("clients", "assertion_typ")
    op.drop_column("clients", "assertion_aud")
