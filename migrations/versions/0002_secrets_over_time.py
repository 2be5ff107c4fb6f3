"""Record when and where secrets were used, and when their expiry was reported."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("client_secrets", sa.Column("expiry_told_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "client_secret_uses",
        sa.Column("secret_id", sa.String(32), nullable=False),
        sa.Column("source_address", sa.String(64), nullable=False),
        sa.Column("first_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("secret_id", "source_address", name="pk_client_secret_uses"),
        sa.ForeignKeyConstraint(
            ["secret_id"],
            ["client_secrets.secret_id"],
            name="fk_client_secret_uses_secret_id_client_secrets",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    op.drop_table("client_secret_uses")
    op.drop_column("client_secrets", "expiry_told_at")
    op.drop_column("clients", "last_used_at")
