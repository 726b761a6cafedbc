-- lock_shard: take a shard for this transaction, or nothing when another worker has it.
-- $1 int: shard
-- The row lock is the fence: it goes with the connection of a worker that dies.
SELECT epoch, last_entry_id FROM usage_shards WHERE shard = $1 FOR UPDATE SKIP LOCKED
