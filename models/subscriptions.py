"""Which tier a user was on, when, and what it brought in."""

import datetime as dt
import uuid
from decimal import Decimal

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Numeric, Uuid, text
from sqlmodel import Field, SQLModel

from models.columns import instant, label

__all__ = ["Subscription", "SubscriptionEvent"]


def _owner() -> Column[uuid.UUID]:
    """Rows are few, one a change of tier, so that a constraint costs nothing."""
    return Column(
        Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, nullable=False
    )


def _money() -> Column[Decimal]:
    """The precision of seed 002."""
    return Column(Numeric(10, 2), nullable=False, server_default=text("0"))


class Subscription(SQLModel, table=True):
    """A stretch of a user on a tier (seeds 002, 004); the stretches of a user follow one another.

    A user without a row has been on the tier of `users.tier` since it was made: who is met for the first
    time costs no row. `ends_at` is when the stretch is to end by itself, null for never; `ended_at` when it did
    end. `revenue` is that of the whole stretch, `term_revenue` what of it belongs to the term up to `ends_at`,
    so that a renewal that is told twice counts once. `counted_at` is when `user_lifetime_stats` counted it last.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (
        CheckConstraint(
            "status IN ('active', 'ended', 'expired', 'canceled')",
            name="subscriptions_status_known",
        ),
        CheckConstraint("(status = 'active') = (ended_at IS NULL)", name="subscriptions_ended"),
        CheckConstraint(
            "ends_at > started_at AND ended_at >= started_at", name="subscriptions_forward"
        ),
        CheckConstraint(
            "term_revenue >= 0 AND revenue >= term_revenue", name="subscriptions_revenue_bounded"
        ),
        Index(
            "uq_subscriptions_active",
            "user_id",
            unique=True,
            postgresql_where=text("status = 'active'"),
        ),
        Index(
            "idx_subscriptions_due",
            "ends_at",
            "user_id",
            postgresql_where=text("status = 'active' AND ends_at IS NOT NULL"),
        ),
        Index("idx_subscriptions_counted", "counted_at"),
    )

    user_id: uuid.UUID = Field(sa_column=_owner())
    id: uuid.UUID = Field(
        sa_column=Column(Uuid, primary_key=True, server_default=text("gen_random_uuid()"))
    )
    tier: str = Field(sa_column=label(nullable=False))
    started_at: dt.datetime = Field(sa_column=instant())
    ends_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    status: str = Field(default="active", sa_column=label(nullable=False, default="active"))
    revenue: Decimal = Field(default=Decimal(0), sa_column=_money())
    term_revenue: Decimal = Field(default=Decimal(0), sa_column=_money())
    ended_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
    created_at: dt.datetime = Field(default=None, sa_column=instant(default_now=True))
    counted_at: dt.datetime = Field(
        default=None,
        sa_column=Column(instant().type, nullable=False, server_default=text("to_timestamp(0)")),
    )


class SubscriptionEvent(SQLModel, table=True):
    """How a stretch ended (`ended`, `expired`, `canceled`), once: what billing is to be told of it.

    `delivered_at` is null until it was.
    """

    __tablename__ = "subscription_events"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('ended', 'expired', 'canceled')", name="subscription_events_kind_known"
        ),
        Index(
            "idx_subscription_events_waiting",
            "at",
            postgresql_where=text("delivered_at IS NULL"),
        ),
    )

    user_id: uuid.UUID = Field(sa_column=_owner())
    subscription_id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True, nullable=False))
    kind: str = Field(sa_column=label(nullable=False, primary_key=True))
    tier: str = Field(sa_column=label(nullable=False))
    next_tier: str = Field(sa_column=label(nullable=False))
    at: dt.datetime = Field(sa_column=instant())
    delivered_at: dt.datetime | None = Field(default=None, sa_column=instant(nullable=True))
