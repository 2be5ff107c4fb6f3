"""Find a client's secrets by their digest."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_client_secrets_client_id_digest", "client_secrets", ["client_id", "digest"])
    op.drop_index("ix_client_secrets_client_id", "client_secrets")


def downgrade() -> None:
    op.create_index("ix_client_secrets_client_id", "client_secrets", ["client_id"])
    op.drop_index("ix_client_secrets_client_id_digest", "client_secrets")
