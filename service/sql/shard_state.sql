-- shard_state: a shard's epoch, and how far its log was applied.
-- $1 int: shard
SELECT epoch, last_entry_id, lines_applied FROM usage_shards WHERE shard = $1
