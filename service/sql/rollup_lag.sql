-- rollup_lag: for how many seconds what waits longest to be folded has waited; 0 when nothing waits.
SELECT coalesce(greatest(0, extract(epoch FROM clock_timestamp() - least(
    (SELECT min(noted_at) FROM usage_runs), (SELECT min(noted_at) FROM stale_rollups)
))), 0)::float8
