"""Store secrets of client_secret_jwt encrypted: an HMAC cannot be verified with a digest."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("client_secrets", sa.Column("encrypted", sa.LargeBinary(), nullable=True))
    op.add_column("client_secrets", sa.Column("encryption_key_id", sa.String(16), nullable=True))


def downgrade() -> None:
    op.drop_column("client_secrets", "encryption_key_id")
    op.drop_column("client_secrets", "encrypted")
