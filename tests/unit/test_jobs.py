from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from arq.jobs import deserialize_job_raw, serialize_job
from arq.utils import ms_to_datetime
from hypothesis import given
from hypothesis import strategies as st

from service.jobs import QUARANTINE_JOB, RECORD_USAGE, deserialize_job
from service.jobs import serialize_job as as_json

NOW_MS = 1_750_000_000_000
JOB: dict[str, Any] = {
    "f": RECORD_USAGE,
    "a": [],
    "k": {"user_id": "user-1", "feature": "event", "metadata": {"a": [1, "ü"]}},
    "et": NOW_MS,
    "t": None,
}


def quarantined(raw: bytes) -> str:
    """The reason why *raw* was set aside; it has to be the whole answer."""
    job = deserialize_job(raw)
    assert (job["f"], job["a"], set(job["k"])) == (QUARANTINE_JOB, (), {"raw", "reason"})
    assert raw.startswith(job["k"]["raw"])
    function, args, kwargs, attempt, enqueued_ms = deserialize_job_raw(
        raw, deserializer=deserialize_job
    )
    assert (function, args, kwargs) == (QUARANTINE_JOB, (), job["k"])
    assert attempt == 1
    assert enqueued_ms > NOW_MS
    reason = job["k"]["reason"]
    assert isinstance(reason, str)
    return reason


@pytest.mark.parametrize("serialized", [as_json, msgspec.msgpack.encode])
def test_a_job_in_json_or_messagepack_is_read(serialized: Any):
    raw = serialize_job(RECORD_USAGE, (1, "b"), JOB["k"], None, NOW_MS, serializer=serialized)

    assert deserialize_job(raw) == {
        "f": RECORD_USAGE, "a": (1, "b"), "k": JOB["k"], "t": 1, "et": NOW_MS,
    }  # fmt: skip


def test_a_job_in_pretty_json_is_read():
    assert deserialize_job(b" \n\t" + json.dumps(JOB, indent=2).encode())["k"] == JOB["k"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_job_is_told_what_to_do(protocol: int):
    def pickled(job: Any) -> bytes:
        return pickle.dumps(job, protocol)

    raw = serialize_job(RECORD_USAGE, (), JOB["k"], None, NOW_MS, serializer=pickled)

    assert "job_serializer=" in quarantined(raw)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_not_executed(protocol: int, tmp_path: Path):
    trace = tmp_path / "executed"
    raw = pickle.dumps(Malicious(trace), protocol)

    reason = quarantined(raw)

    assert reason
    assert not trace.exists()
    pickle.loads(raw)  # it would have been: the test can fail
    assert trace.exists()


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


NO_JOBS: list[Any] = [
    {},
    {**JOB, "f": ["record_usage"]},
    {**JOB, "f": None},
    {**JOB, "f": 7},
    {**JOB, "a": {}},
    {**JOB, "a": None},
    {**JOB, "k": []},
    {**JOB, "k": None},
    {**JOB, "et": "now"},
    {**JOB, "et": 1.5},
    {**JOB, "et": None},
    {**JOB, "et": True},
    {**JOB, "et": 2**70},
    {**JOB, "et": 10**18},  # no datetime: arq would die of it
    {**JOB, "et": -(10**18)},
    {**JOB, "et": -1},
    {**JOB, "t": "1"},
    {name: JOB[name] for name in JOB if name != "f"},
    {name: JOB[name] for name in JOB if name != "k"},
    {name: JOB[name] for name in JOB if name != "et"},
    [],
    None,
    7,
    "record_usage",
]


@pytest.mark.parametrize("job", NO_JOBS)
def test_what_is_no_job_is_set_aside(job: Any):
    assert quarantined(json.dumps(job).encode()).startswith("not a job")
    if not isinstance(job, dict) or max(map(abs, filter_numbers(job))) < 2**63:
        assert quarantined(msgspec.msgpack.encode(job)).startswith("not a job")


def filter_numbers(job: dict[str, Any]) -> list[int]:
    return [0, *(value for value in job.values() if isinstance(value, int))]


@pytest.mark.parametrize(
    "name", ["recordusage", "", "quarantine_job", "drain_log", "x" * 10_000, "cronjob"]
)
def test_a_job_that_the_worker_does_not_have_is_set_aside(name: str):
    raw = json.dumps({**JOB, "f": name}).encode()

    assert "record_usage" in quarantined(raw)  # the reason says which one there is


def test_the_jobs_that_arq_makes_for_crons_are_read():
    raw = serialize_job("cron:drain_log", (), {}, None, NOW_MS, serializer=as_json)

    assert deserialize_job(raw)["f"] == "cron:drain_log"


@pytest.mark.parametrize("attempt", [0, -5, 2, 10**9, 2**70])
def test_the_producer_can_not_use_up_the_tries(attempt: int):
    raw = json.dumps({**JOB, "t": attempt}).encode()

    assert deserialize_job(raw)["t"] == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"garbage",
        b"{",
        b'{"f":',
        b'{"f":"record_usage","a":[],"k":{"amount":NaN},"et":1}',
        b'{"f":"record_usage","a":[],"k":{"user_id":"\xff"},"et":1}',
        b'{"f":"record_usage","a":[],"k":{"user_id":"\\ud800"},"et":1}',
        b'{"f":"record_usage","a":[],"k":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b',"et":1}',
        b"{" + b'"a":[' * 6_000,
        b"\x81" * 60_000,
        b"\x91" * 60_000,
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"\xc7\xff\x01",
        bytes(range(256)),
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_garbage_is_set_aside(raw: bytes):
    assert quarantined(raw)


def test_an_oversize_job_is_set_aside_and_cut():
    raw = json.dumps({**JOB, "k": {"metadata": "x" * 70_000}}).encode()

    assert str(len(raw)) in quarantined(raw)
    assert len(deserialize_job(raw)["k"]["raw"]) == 64 * 1024


def test_a_job_with_the_largest_metadata_is_read():
    metadata = {"a": "x" * 16_000}
    raw = json.dumps({**JOB, "k": {**JOB["k"], "metadata": metadata}}).encode()

    assert deserialize_job(raw)["k"]["metadata"] == metadata


@given(raw=st.binary(max_size=200) | st.binary(max_size=40).map(lambda tail: b'{"f":' + tail))
def test_no_bytes_raise(raw: bytes):
    assert quarantined(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(job=st.fixed_dictionaries({name: st.just(JOB[name]) | json_values for name in JOB}))
def test_whatever_comes_out_is_a_job_that_arq_can_run(job: dict[str, Any]):
    read = deserialize_job(json.dumps(job).encode())

    assert read["f"] in {RECORD_USAGE, QUARANTINE_JOB} or read["f"].startswith("cron:")
    assert isinstance(read["a"], tuple)
    assert all(isinstance(name, str) for name in read["k"])
    assert read["t"] == 1
    ms_to_datetime(read["et"])
