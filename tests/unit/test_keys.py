from __future__ import annotations

import re
from collections import Counter
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from quota.keys import MARK_RING, Keys
from quota.values import parse_user_id


def names_of(keys: Keys, shard: int) -> list[str]:
    one, user = keys.shards[shard], UUID(int=7).hex
    return [*one.head, one.user_of(user), one.grants_of(user), one.token_of(user)]


def test_all_keys_of_a_shard_carry_its_hash_tag_and_no_other():
    keys = Keys("p", 12)

    for shard in range(12):
        tags = {tuple(re.findall(r"\{(.*?)\}", name)) for name in names_of(keys, shard)}
        assert tags == {(f"s{shard:02d}",)}


def test_no_two_keys_of_an_installation_have_one_name():
    keys = Keys("p", 64)
    names = [name for shard in range(64) for name in names_of(keys, shard)]
    names += [keys.loads, keys.reply_of("r1"), keys.reply_of("r2")]

    assert len(set(names)) == len(names)
    assert all(name.startswith("p:") for name in names)


def test_the_ring_of_marks_has_as_many_places_as_the_script_counts_on():
    assert [len(shard.marks) for shard in Keys("p", 2).shards] == [MARK_RING] * 2 == [3] * 2


@given(user=st.uuids(), shards=st.integers(1, 64))
def test_a_user_is_always_in_the_same_shard(user: UUID, shards: int):
    keys = Keys("p", shards)

    shard = keys.shard_of(user)

    assert shard is Keys.shard_of(keys, UUID(str(user)))
    assert shard is keys.shards[shard.index]


def test_users_spread_over_the_shards():
    keys = Keys("p", 8)

    shards = Counter(keys.shard_of(parse_user_id(f"user-{n}").id).index for n in range(8_000))

    assert len(shards) == 8
    assert max(shards.values()) < 1_200
