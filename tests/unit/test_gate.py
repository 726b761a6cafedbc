"""Which errors of Redis are of one record, and which of everybody."""

from __future__ import annotations

import pytest
from redis.exceptions import (
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from quota.gate import NotReadyError, _of_the_server


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("refused"),
        RedisTimeoutError("no answer"),
        BusyLoadingError("loading the dataset"),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ReadOnlyError("You can't write against a read only replica."),
        NoPermissionError("this user has no permissions"),
        # As scripts of Redis 6.2 and 7 tell them.
        ResponseError(
            "Error running script (call to f_1): @user_script:9: -OOM command not allowed"
        ),
        ResponseError("MISCONF Errors writing to the AOF file, on @user_script:9."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("MASTERDOWN Link with MASTER is down"),
    ],
)
def test_what_everybody_would_meet_is_not_asked_again_one_by_one(error: Exception):
    assert _of_the_server(error)


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ResponseError("Error running script (call to f_1): @user_script:9: WRONGTYPE Operation"),
        ResponseError("ERR hash value is not an integer script: 1, on @user_script:9."),
        ResponseError("user_script:9: attempt to perform arithmetic on a nil value"),
        NotReadyError("epoch"),
        ValueError("of this process"),
    ],
)
def test_what_one_record_met_is_not_told_to_everybody(error: Exception):
    assert not _of_the_server(error)
