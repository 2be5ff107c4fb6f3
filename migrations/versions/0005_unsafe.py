"""Mark keys that were made to sign before every verifier knew them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("signing_keys", sa.Column("unsafe", sa.Boolean(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("signing_keys") as table:
        table.drop_column("unsafe")
