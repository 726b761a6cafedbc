"""What operators see: Prometheus metrics of the worker. Labels are bounded: never a user, never a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily

from quota.outage import TALLY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry

__all__ = ["OUTCOMES", "Metrics"]

_VERBS = {"c": "consume", "k": "check", "r": "record", "h": "reserve"}
# Outcomes as the admit script names them in its tallies, behind the letter of the verb.
OUTCOMES = {
    "0": "ok",
    "1": "soft_limit",
    "2": "limit_exceeded",
    "3": "insufficient_credits",
    "4": "feature_not_in_tier",
    "12": "key_conflict",
    "replayed": "replayed",
}
# How holds end, and the tally of each.
_ENDS = {"committed": "scommitted", "released": "sreleased", "expired": "expired"}
_BATCH_SIZES = (1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The worker's metrics, in *registry*."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.applied = Counter(
            "allotment_records_applied", "Records applied to PostgreSQL", registry=registry
        )
        self.duplicates = Counter(
            "allotment_records_duplicate",
            "Records that PostgreSQL had already, not applied again",
            registry=registry,
        )
        self.quarantined = Counter(
            "allotment_records_quarantined",
            "Records that could not be applied, set aside",
            registry=registry,
        )
        self.batch_size = Histogram(
            "allotment_apply_batch_records",
            "Records in one transaction",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "allotment_apply_seconds",
            "Time of one apply transaction",
            buckets=_SECONDS,
            registry=registry,
        )
        self.apply_failures = Counter(
            "allotment_apply_failures",
            "Apply transactions that failed and are tried again",
            registry=registry,
        )
        self.shards_freed = Counter(
            "allotment_shards_freed",
            "Shards taken from a worker that stood still in the middle of a run",
            registry=registry,
        )
        self.backlog = Gauge(
            "allotment_log_backlog_records",
            "Records admitted and not yet applied",
            ["shard"],
            registry=registry,
        )
        self.log_bytes = Gauge(
            "allotment_log_bytes",
            "Bytes of Redis' memory that the log has",
            ["shard"],
            registry=registry,
        )
        self.log_bytes_max = Gauge(
            "allotment_log_bytes_max",
            "Bytes past which a shard admits nothing, 0 = any",
            registry=registry,
        )
        self.redis_bytes = Gauge(
            "allotment_redis_memory_bytes",
            "Memory that Redis uses, that of quotas and, if it is another one, that of arq's queue",
            ["redis"],
            registry=registry,
        )
        self.redis_bytes_max = Gauge(
            "allotment_redis_memory_bytes_max",
            "Memory past which Redis takes nothing, 0 = any",
            ["redis"],
            registry=registry,
        )
        self.redis_evicts = Gauge(
            "allotment_redis_evicts",
            "Whether Redis forgets what it has when it is full: its maxmemory-policy is not noeviction",
            ["redis"],
            registry=registry,
        )
        self.oldest_age = Gauge(
            "allotment_log_oldest_seconds",
            "Age of the oldest record not yet applied",
            ["shard"],
            registry=registry,
        )
        self.jobs = Counter(
            "allotment_jobs",
            "arq jobs run, by how they ended",
            # Not "job": that is the label of Prometheus for what it scrapes, and it renames ours.
            ["function", "outcome"],
            registry=registry,
        )
        self.loads = Counter(
            "allotment_users_loaded", "Users loaded from PostgreSQL into Redis", registry=registry
        )
        self.load_seconds = Histogram(
            "allotment_load_seconds",
            "Time of one load request",
            buckets=_SECONDS,
            registry=registry,
        )
        self.reconciled = Counter(
            "allotment_users_reconciled",
            "Users compared in Redis and PostgreSQL, by what came of it",
            ["outcome"],
            registry=registry,
        )
        self.healed = Counter(
            "allotment_users_healed",
            "Users dropped from Redis because they differed from PostgreSQL",
            registry=registry,
        )
        self.drift_users = Gauge(
            "allotment_drift_users",
            "Users that differed, in the last round of reconcile",
            registry=registry,
        )
        self.drift_units = Gauge(
            "allotment_drift_units",
            "Units by which counters differed, either way, in the last round of reconcile",
            registry=registry,
        )
        self.drift_credits = Gauge(
            "allotment_drift_credits",
            "Credits by which balances differed, either way, in the last round of reconcile",
            registry=registry,
        )
        self.folded = Counter(
            "allotment_records_folded",
            "Records summed up into days, months and lifetimes",
            registry=registry,
        )
        self.fold_seconds = Histogram(
            "allotment_fold_seconds",
            "Time of one round of folding",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rollup_lag = Gauge(
            "allotment_rollup_lag_seconds",
            "For how long what waits longest to be summed up has waited",
            registry=registry,
        )
        self.subscriptions_expired = Counter(
            "allotment_subscriptions_expired",
            "Stretches on a tier that ended because their time was over",
            registry=registry,
        )
        self.subscriptions_overdue = Gauge(
            "allotment_subscriptions_overdue_seconds",
            "For how long the stretch on a tier that waits longest to be ended has been over",
            registry=registry,
        )
        self.tallies = Tallies()
        registry.register(self.tallies)


class Tallies:
    """What was counted for every process: decisions by outcome, lines logged, epochs begun.

    Counted in Redis and not in a process, because who decides is the application, which has no metrics
    of ours. Lost with Redis, as a counter of Prometheus may be. Until they were read there are none: after a
    0, Prometheus takes what was counted in all the time before for an increase.
    """

    def __init__(self) -> None:
        self._shards: dict[int, dict[str, int]] = {}
        self._epochs: dict[int, int] = {}

    def set(self, shard: int, counts: Mapping[str, int], *, epochs: int) -> None:
        """Take over the tallies of a shard as they were just read, and what PostgreSQL says of its epochs."""
        self._shards[shard] = dict(counts)
        self._epochs[shard] = epochs

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The families that Prometheus scrapes."""
        yield self._family(
            "allotment_records_admitted", "Lines written to the usage log", [((), "lines")]
        )
        begun = CounterMetricFamily(
            "allotment_epochs_begun",
            "Times a shard was begun anew: Redis was emptied, set back or unreadable, or PostgreSQL was set back",
        )
        if self._shards:
            begun.add_metric([], sum(self._epochs.values()))
        yield begun
        yield self._family(
            "allotment_log_gaps",
            "Times PostgreSQL was found set back further than the log of a shard reaches: records are missing",
            [((), "gaps")],
        )
        yield self._family(
            "allotment_outage_admitted",
            "Records that applications admitted while they could not reach Redis, recorded afterwards",
            [((), TALLY)],
        )
        decisions = [
            ((verb_name, outcome_name), verb + outcome)
            for verb, verb_name in _VERBS.items()
            for outcome, outcome_name in OUTCOMES.items()
        ]
        yield self._family(
            "allotment_decisions", "Decisions", decisions, labels=("verb", "outcome")
        )
        ends = [((status,), tally) for status, tally in _ENDS.items()]
        yield self._family("allotment_holds_ended", "Holds ended, by how", ends, labels=("status",))

    def _family(
        self,
        name: str,
        help_text: str,
        tallies: Iterable[tuple[tuple[str, ...], str]],
        *,
        labels: tuple[str, ...] = (),
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(name, help_text, labels=labels)
        for values, tally in tallies:
            if self._shards:
                family.add_metric(
                    values, sum(counts.get(tally, 0) for counts in self._shards.values())
                )
        return family
