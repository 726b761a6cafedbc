-- snapshot_position: the last entry of a shard's log that was applied, and the rules in force.
-- $1 int: shard
-- version and applied_at_ms are NULL before the first `tiers apply`; the instant tells two versions of one
-- number apart, of which there are two when PostgreSQL was set back in between
SELECT epoch, last_entry_id, version, applied_at_ms
FROM usage_shards
LEFT JOIN (
    SELECT version, floor(extract(epoch FROM applied_at) * 1000)::bigint AS applied_at_ms
    FROM tiers ORDER BY version DESC LIMIT 1
) AS in_force ON true
WHERE shard = $1
