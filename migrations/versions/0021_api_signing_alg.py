"""Add the algorithm that signs the tokens of an API."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("apis", sa.Column("signing_alg", sa.String(16), nullable=True))


def downgrade() -> None:
    op.drop_column("apis", "signing_alg")
