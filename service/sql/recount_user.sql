-- recount_user: set a user's running counters to what was counted since these starts, 0 where nothing was.
-- $1 uuid user
-- starts, timestamptz:    $2 hour   $3 day   $4 week   $5 month   $6 year   $7 cycle
-- $8 text[]: features, and their units, bigint[]:   $9 hour   $10 day   $11 week   $12 month   $13 year   $14 cycle
UPDATE usage_counters c
SET hour_start = $2, hour_used = coalesce(u.hour_used, 0),
    day_start = $3, day_used = coalesce(u.day_used, 0),
    week_start = $4, week_used = coalesce(u.week_used, 0),
    month_start = $5, month_used = coalesce(u.month_used, 0),
    year_start = $6, year_used = coalesce(u.year_used, 0),
    cycle_start = $7, cycle_used = coalesce(u.cycle_used, 0)
FROM usage_counters k
LEFT JOIN unnest($8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[])
     AS u (feature, hour_used, day_used, week_used, month_used, year_used, cycle_used) USING (feature)
WHERE k.user_id = $1 AND c.user_id = k.user_id AND c.feature = k.feature
