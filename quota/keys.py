"""Names of everything that Allotment keeps in Redis.

All keys of a shard carry its hash tag, so one script call touches one slot and the same code
runs on Redis Cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["MARK_RING", "PREFIX_DEFAULT", "SHARDS_DEFAULT", "Keys", "ShardKeys"]

PREFIX_DEFAULT = "allotment"
SHARDS_DEFAULT = 4
MARK_RING = 3  # the places of the ring that remembers keys; the admit script counts on three


class ShardKeys:
    """The keys of one shard; those of a user are made on demand."""

    __slots__ = (
        "due",
        "grants_of",
        "head",
        "index",
        "log",
        "marks",
        "meta",
        "rules",
        "tallies",
        "token_of",
        "user_of",
    )

    def __init__(self, prefix: str, index: int) -> None:
        tag = f"{prefix}:{{s{index:02d}}}:"
        self.index = index
        self.log = tag + "log"  # stream: the usage log
        self.meta = (
            tag + "meta"
        )  # hash: epoch, rules (version), shards, dedupe (ms), and where the log stands
        self.rules = tag + "rules"  # hash: Rules.lines(), and the document under "#document"
        self.marks = [f"{tag}marks:{place}" for place in range(MARK_RING)]  # hashes: mark to answer
        self.tallies = tag + "tallies"  # hash: verb and outcome to how many
        self.due = tag + "due"  # sorted set: users by when their next hold expires
        self.head = [self.log, self.meta, self.rules, *self.marks, self.tallies, self.due]
        self.user_of = f"{tag}u:%s".__mod__  # hash: what decisions need, see admit.lua
        self.grants_of = f"{tag}g:%s".__mod__  # string: calendar and grants, see standing.py
        self.token_of = f"{tag}t:%s".__mod__  # string: who loads this user now


class Keys:
    """The key space of one installation: a prefix and a number of shards."""

    def __init__(self, prefix: str = PREFIX_DEFAULT, shards: int = SHARDS_DEFAULT) -> None:
        self.prefix = prefix
        self.shards = [ShardKeys(prefix, index) for index in range(shards)]
        # Not of any shard: a request to load names its shard itself.
        self.loads = f"{prefix}:loads"
        self.sweep = f"{prefix}:sweep"  # string: how far reconcile went through the users

    def shard_of(self, user_id: UUID) -> ShardKeys:
        """The shard of a user; ids are random in their low bits, so users spread evenly."""
        return self.shards[user_id.int % len(self.shards)]

    def reply_of(self, request: str) -> str:
        """Where the answer to a load request is left; in the slot of nothing else."""
        return f"{self.prefix}:loaded:{request}"
