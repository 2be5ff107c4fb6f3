"""Add revoked tokens, and clients that may introspect."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable: the release before this one writes rows without them.
    op.add_column("clients", sa.Column("introspects", sa.JSON(), nullable=True))
    op.add_column("clients", sa.Column("audiences_ever", sa.JSON(), nullable=True))
    op.add_column("clients", sa.Column("tokens_not_before", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE clients SET audiences_ever = audiences")
    op.execute("UPDATE clients SET tokens_not_before = COALESCE(deleted_at, disabled_at)")
    op.create_table(
        "revoked_tokens",
        sa.Column("jti", sa.String(64), nullable=False),
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("audiences", sa.JSON(), nullable=False),
        sa.Column("exp", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("jti", name="pk_revoked_tokens"),
    )
    op.create_index("ix_revoked_tokens_exp", "revoked_tokens", ["exp"])
    op.create_index("ix_revoked_tokens_revoked_at", "revoked_tokens", ["revoked_at"])
    op.create_index("ix_clients_tokens_not_before", "clients", ["tokens_not_before"])


def downgrade() -> None:
    op.drop_index("ix_clients_tokens_not_before", "clients")
    op.drop_table("revoked_tokens")
    # One by one: on SQLite a batch would recreate the table, and deleting the old one would delete the secrets.
    for name in ("tokens_not_before", "audiences_ever", "introspects"):
        op.drop_column("clients", name)
