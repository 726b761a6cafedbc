-- end_holder: end the session that has a shard's row, if it is still the one that was seen to wait; else no row.
-- $1 int: shard   $2 int: pid   $3 timestamptz: query_start   $4 bigint: sent, as shard_holder told
SELECT pg_terminate_backend(a.pid)
FROM usage_shards AS s
JOIN pg_stat_activity AS a ON a.backend_xid = s.xmax
LEFT JOIN pg_stat_progress_copy AS c ON c.pid = a.pid
WHERE s.shard = $1 AND a.pid = $2 AND a.query_start = $3 AND coalesce(c.bytes_processed, 0) = $4 AND a.wait_event_type = 'Client'
