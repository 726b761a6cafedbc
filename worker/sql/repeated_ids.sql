-- repeated_ids: which of these ids are logged already; ids carry their time, so few partitions are looked at.
-- $1 uuid[] ids   $2 timestamptz, $3 timestamptz: when they may have been logged
SELECT id, user_id FROM usage_logs WHERE id = ANY ($1::uuid[]) AND created_at BETWEEN $2 AND $3
