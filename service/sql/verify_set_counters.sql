-- verify_set_counters: what features' counters should say.
-- $1 uuid[] users   $2 text[] features
-- start and units of each period, timestamptz[] and bigint[]:   $3 $4 hour   $5 $6 day   $7 $8 week   $9 $10 month
-- $11 $12 year   $13 $14 cycle   $15 bigint[] units of a lifetime
INSERT INTO usage_counters (user_id, feature, hour_start, hour_used, day_start, day_used, week_start, week_used,
                            month_start, month_used, year_start, year_used, cycle_start, cycle_used, lifetime_used)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::bigint[], $5::timestamptz[], $6::bigint[],
                     $7::timestamptz[], $8::bigint[], $9::timestamptz[], $10::bigint[], $11::timestamptz[],
                     $12::bigint[], $13::timestamptz[], $14::bigint[], $15::bigint[])
ORDER BY 1, 2
ON CONFLICT (user_id, feature) DO UPDATE
SET hour_start = excluded.hour_start, hour_used = excluded.hour_used,
    day_start = excluded.day_start, day_used = excluded.day_used,
    week_start = excluded.week_start, week_used = excluded.week_used,
    month_start = excluded.month_start, month_used = excluded.month_used,
    year_start = excluded.year_start, year_used = excluded.year_used,
    cycle_start = excluded.cycle_start, cycle_used = excluded.cycle_used,
    lifetime_used = excluded.lifetime_used
