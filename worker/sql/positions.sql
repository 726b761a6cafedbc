-- positions: how far every shard is applied, in order.
SELECT shard, last_entry_id, lines_applied FROM usage_shards ORDER BY shard
