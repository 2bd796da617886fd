"""Until when a receiver asked to be left alone, and when a notice that was held back was let go."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("receivers") as receivers:
        receivers.add_column(sa.Column("quiet_until", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("deliveries") as deliveries:
        deliveries.add_column(sa.Column("released_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("deliveries") as deliveries:
        deliveries.drop_column("released_at")
    with op.batch_alter_table("receivers") as receivers:
        receivers.drop_column("quiet_until")
