"""Add the platforms that clients trust, and the platforms' keys."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "issuer_key_sets",
        sa.Column("issuer", sa.String(500), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("jwks", sa.JSON(), nullable=False),
        sa.Column("skipped", sa.JSON(), nullable=True),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("refresh_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fault", sa.Text(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", name="pk_issuer_key_sets"),
    )
    op.create_index("ix_issuer_key_sets_refresh_at", "issuer_key_sets", ["refresh_at"])
    op.create_table(
        "client_trusts",
        sa.Column("trust_id", sa.String(32), nullable=False),
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("issuer", sa.String(500), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("claims", sa.JSON(), nullable=False),
        sa.Column("audience", sa.Text(), nullable=False),
        sa.Column("once", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.client_id"], name="fk_client_trusts_client_id_clients", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trust_id", name="pk_client_trusts"),
    )
    op.create_index("ix_client_trusts_client_id", "client_trusts", ["client_id"])
    op.create_index("ix_client_trusts_issuer", "client_trusts", ["issuer"])


def downgrade() -> None:
    op.drop_table("client_trusts")
    op.drop_table("issuer_key_sets")
