"""Add APIs, and which clients may call them."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "apis",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("identifier", sa.String(2000), nullable=False),
        sa.Column("normalized_identifier", sa.String(2000), nullable=False),
        sa.Column("scope", sa.JSON(), nullable=False),
        sa.Column("access_token_lifetime", sa.Integer(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("claims", sa.JSON(), nullable=True),
        sa.Column("publishes_document", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_apis"),
    )
    op.create_index("ix_apis_normalized_identifier", "apis", ["normalized_identifier"], unique=True)
    op.create_table(
        "api_grants",
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("api_name", sa.String(100), nullable=False),
        sa.Column("scope", sa.JSON(), nullable=False),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.client_id"], name="fk_api_grants_client_id_clients", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["api_name"], ["apis.name"], name="fk_api_grants_api_name_apis", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("client_id", "api_name", name="pk_api_grants"),
    )
    op.create_index("ix_api_grants_api_name", "api_grants", ["api_name"])
    op.add_column("clients", sa.Column("apis", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("clients", "apis")
    op.drop_table("api_grants")
    op.drop_table("apis")
