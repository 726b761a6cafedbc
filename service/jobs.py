"""Names of jobs, and the form in which they travel: JSON or MessagePack, never pickle.

arq deletes a job that it cannot read, and dies of some that it can (FAULTS 2.13, 2.14). So whatever
is not a job of ours is turned into a job that sets the bytes aside with the reason.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from quota.errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "QUARANTINE_JOB",
    "RECORD_USAGE",
    "deserialize_job",
    "record_arguments",
    "serialize_job",
]

RECORD_USAGE = "record_usage"
QUARANTINE_JOB = "quarantine_job"
_JOB_BYTES_MAX = 64 * 1024  # metadata may be 16 KiB; the rest of a record is small
_ENQUEUED_MS_MAX = 253_402_300_799_999  # the year 9999: arq dies of a later one
_CRON = "cron:"  # arq's own prefix for the jobs that its timetable makes
# What a record may have; the first ones also by position, in this order.
_BY_POSITION = ("user_id", "feature", "amount", "key")
_FIELDS = (
    *_BY_POSITION,
    "format",
    "quality",
    "metadata",
    "occurred_at",
    "event_id",
    "event_type",
    "product_version",
    "session_id",
)
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class _Job(msgspec.Struct):
    """The fields of arq's job dictionary that a worker reads.

    Which try it is (`t`) is counted in Redis: from a producer it could only use up the tries.
    """

    f: str
    a: list[Any]
    k: dict[str, Any]
    et: Annotated[int, msgspec.Meta(ge=0, le=_ENQUEUED_MS_MAX)]
    t: int | None = None


def serialize_job(job: dict[str, Any]) -> bytes:
    """As JSON: a person can read the queue with redis-cli."""
    return msgspec.json.encode(job, enc_hook=repr)


def deserialize_job(raw: bytes) -> dict[str, Any]:
    """The job in *raw*, or one that quarantines it; never raises."""
    reason = _why_refused(raw)
    if reason is None:
        try:
            decode = msgspec.json.decode if raw.lstrip()[:1] == b"{" else msgspec.msgpack.decode
            job = decode(raw, type=_Job)
            if job.f == RECORD_USAGE or job.f.startswith(_CRON):
                return {"f": job.f, "a": tuple(job.a), "k": job.k, "t": 1, "et": job.et}
            reason = f"no job is called {job.f[:80]!r}, only {RECORD_USAGE!r}"  # arq would drop it
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            reason = f"not a job: {error}"
    arguments = {"raw": raw[:_JOB_BYTES_MAX], "reason": reason}
    return {"f": QUARANTINE_JOB, "a": (), "k": arguments, "t": 1, "et": time.time_ns() // 1_000_000}


def _why_refused(raw: bytes) -> str | None:
    if raw.startswith(_PICKLE):
        return "pickled: give create_pool job_serializer=lambda job: json.dumps(job).encode()"
    if len(raw) > _JOB_BYTES_MAX:
        return f"{len(raw)} bytes, the limit is {_JOB_BYTES_MAX}"
    return None


def record_arguments(
    args: Sequence[Any], named: Mapping[str, Any], *, job_id: str
) -> dict[str, Any]:
    """The arguments of a `record_usage` job by name, as `Quota.record` takes them.

    Without a key, the job's id is the key: a job that runs twice counts once.

    Raises:
        InvalidValueError: one is not a field, or is given twice.
    """
    if len(args) > len(_BY_POSITION):
        expected = f"at most {', '.join(_BY_POSITION)}, and the rest by name"
        raise InvalidValueError("arguments", list(args), expected)
    given = dict(zip(_BY_POSITION, args, strict=False))
    for name, value in named.items():
        if name not in _FIELDS:
            raise InvalidValueError(name, value, f"one of the fields {', '.join(_FIELDS)}")
        if name in given:
            raise InvalidValueError(name, value, "it once, not by position and by name")
    found = {"user_id": None, "feature": None, "amount": 1, "key": None, **given, **named}
    if found["key"] is None:
        found["key"] = f"arq:{job_id}"
    return found
