-- hold_shard: a shard's epoch and position, locked; waits for the worker that applies it now.
-- $1 int: shard
SELECT epoch, last_entry_id, lines_applied FROM usage_shards WHERE shard = $1 FOR UPDATE
