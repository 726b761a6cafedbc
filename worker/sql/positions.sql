-- positions: how far every shard is applied, and its epoch, in order.
SELECT shard, epoch, last_entry_id, lines_applied FROM usage_shards ORDER BY shard
