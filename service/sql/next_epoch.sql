-- next_epoch: a new epoch of a shard; it only grows, also beyond the one that Redis has.
-- $1 int: shard   $2 bigint: the epoch that Redis has   $3 text: up to where its log is known to be applied
UPDATE usage_shards SET epoch = greatest(epoch, $2) + 1, last_entry_id = $3, updated_at = now()
WHERE shard = $1 RETURNING epoch
