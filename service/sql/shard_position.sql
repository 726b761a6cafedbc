-- shard_position: the last entry of a shard's log that was applied, and the transaction that locked the row last.
-- $1 int: shard
SELECT epoch, last_entry_id, xmax AS locked_by FROM usage_shards WHERE shard = $1
