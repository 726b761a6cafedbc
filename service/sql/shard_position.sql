-- shard_position: the last entry of a shard's log that was applied.
-- $1 int: shard
SELECT epoch, last_entry_id FROM usage_shards WHERE shard = $1
