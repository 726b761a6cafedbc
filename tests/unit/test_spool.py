from __future__ import annotations

import pytest
from redis import exceptions as of_redis

from quota.errors import QuotaError, QuotaUnavailableError
from quota.outage import is_away
from quota.spool import Spool, Waiting
from quota.values import usage_record
from quota.wire import CONSUME, RECORD, Ask


def waiting(key: str, *, user: str = "user-1", amount: int = 1, **more: object) -> Waiting:
    record = usage_record(user, "tokens", amount, key=key, now_ms=0, **more)
    return Waiting(Ask(CONSUME, [record]), 0, 0.0)


def units(spool: Spool, one: Waiting) -> int:
    record = one.ask.records[0]
    return spool.units(record.user.id, record.feature)


def test_units_are_counted_by_user_and_feature_until_they_are_recorded():
    spool = Spool()
    first, second, other = waiting("a", amount=3), waiting("b"), waiting("a", user="user-2")

    assert all(spool.add(one) for one in (first, second, other))

    assert (units(spool, first), units(spool, other)) == (4, 1)
    assert spool.units(first.ask.user_id, "seconds") == 0
    spool.drop(first)
    assert units(spool, first) == 1
    spool.drop(second)
    assert (units(spool, first), len(spool)) == (0, 1)


def test_a_record_of_several_features_counts_in_each():
    records = [usage_record("u", name, 2, key="k", now_ms=0) for name in ("images", "tokens")]
    spool = Spool()
    one = Waiting(Ask(RECORD, records), 0, 0.0)

    assert spool.add(one)

    user_id = records[0].user.id
    assert [spool.units(user_id, name) for name in ("images", "tokens")] == [2, 2]
    spool.drop(one)
    assert spool.units(user_id, "images") == 0


def test_a_full_spool_takes_no_more_until_one_is_recorded():
    spool = Spool(records_max=2)
    first, second, third = (waiting(key) for key in "abc")

    assert [spool.add(one) for one in (first, second, third)] == [True, True, False]

    assert units(spool, first) == 2
    spool.drop(first)
    assert spool.add(third)
    assert spool.all() == [second, third]


def test_a_spool_is_bounded_in_bytes_too():
    large = [waiting(key, metadata={"text": "x" * 1000}) for key in "abcd"]
    spool = Spool(bytes_max=3 * large[0].bytes)

    assert [spool.add(one) for one in large] == [True, True, True, False]

    spool.drop(large[0])
    assert spool.add(large[3])


def test_a_record_is_found_by_user_and_key_alone():
    spool = Spool()
    one = waiting("a")
    assert spool.add(one)

    assert spool.find(waiting("a", amount=9).ask.mark) is one
    assert spool.find(waiting("b").ask.mark) is None
    assert spool.find(waiting("a", user="user-2").ask.mark) is None


def test_what_can_not_be_recorded_yet_lets_the_others_go_first():
    spool = Spool()
    first, second = waiting("a"), waiting("b")
    assert all(spool.add(one) for one in (first, second))

    spool.put_last(first)

    assert spool.all() == [second, first]
    assert spool.find(first.ask.mark) is first


def caused(error: Exception) -> QuotaUnavailableError:
    told = QuotaUnavailableError("a user could not be loaded")
    told.__cause__ = error
    return told


@pytest.mark.parametrize(
    "error",
    [
        of_redis.ConnectionError("refused"),
        of_redis.TimeoutError("no answer"),
        of_redis.BusyLoadingError("loading the append-only file"),
        of_redis.ReadOnlyError("a replica, while its primary is away"),
        of_redis.MasterDownError("CLUSTERDOWN the cluster is down"),  # type: ignore[no-untyped-call]
        caused(of_redis.ConnectionError("refused")),
        caused(caused(of_redis.TimeoutError("no answer"))),
    ],
)
def test_a_redis_that_does_not_answer_is_away(error: Exception):
    assert is_away(error)


@pytest.mark.parametrize(
    "error",
    [
        of_redis.OutOfMemoryError("command not allowed"),  # it answers, and must not be passed by
        of_redis.AuthenticationError("wrong password"),
        of_redis.ResponseError("unknown command"),
        QuotaUnavailableError("no worker answered"),
        caused(OSError("PostgreSQL refused")),
        QuotaError("?"),
    ],
)
def test_a_redis_that_refuses_or_a_postgresql_that_is_down_is_no_outage(error: Exception):
    assert not is_away(error)
