-- subscriptions_overdue: for how many seconds the stretch that waits longest to be ended has been over; 0: none waits.
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(ends_at)), 0)::float8
FROM subscriptions WHERE status = 'active' AND ends_at <= clock_timestamp()
