-- add_counters: add to the running periods of each user and feature.
-- $1 uuid[] users   $2 text[] features   $3 bigint[] units   $4 int[] calendars: places, from 1, in $11 to $16
-- units of those that fall into the period that runs at the end, null where that is all of them, bigint[]:
-- $5 hour   $6 day   $7 week   $8 month   $9 year   $10 cycle
-- starts of the periods that run, of each calendar, timestamptz[]:
-- $11 hour   $12 day   $13 week   $14 month   $15 year   $16 cycle
-- Same period: add.  A later one: start over.  An earlier one: it is past, and not counted here any more.
INSERT INTO usage_counters AS c (user_id, feature, hour_start, hour_used, day_start, day_used, week_start, week_used,
                                 month_start, month_used, year_start, year_used, cycle_start, cycle_used, lifetime_used)
SELECT u.user_id, u.feature,
       s.hour, coalesce(u.hour, u.units), s.day, coalesce(u.day, u.units), s.week, coalesce(u.week, u.units),
       s.month, coalesce(u.month, u.units), s.year, coalesce(u.year, u.units), s.cycle, coalesce(u.cycle, u.units),
       u.units
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bigint[])
     AS u(user_id, feature, units, calendar, hour, day, week, month, year, cycle)
JOIN unnest($11::timestamptz[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[], $15::timestamptz[],
            $16::timestamptz[])
     WITH ORDINALITY AS s(hour, day, week, month, year, cycle, calendar) USING (calendar)
ORDER BY 1, 2
ON CONFLICT (user_id, feature) DO UPDATE
SET hour_used = CASE WHEN excluded.hour_start > c.hour_start THEN excluded.hour_used
                     WHEN excluded.hour_start = c.hour_start THEN c.hour_used + excluded.hour_used ELSE c.hour_used END,
    hour_start = greatest(c.hour_start, excluded.hour_start),
    day_used = CASE WHEN excluded.day_start > c.day_start THEN excluded.day_used
                    WHEN excluded.day_start = c.day_start THEN c.day_used + excluded.day_used ELSE c.day_used END,
    day_start = greatest(c.day_start, excluded.day_start),
    week_used = CASE WHEN excluded.week_start > c.week_start THEN excluded.week_used
                     WHEN excluded.week_start = c.week_start THEN c.week_used + excluded.week_used ELSE c.week_used END,
    week_start = greatest(c.week_start, excluded.week_start),
    month_used = CASE WHEN excluded.month_start > c.month_start THEN excluded.month_used
                      WHEN excluded.month_start = c.month_start THEN c.month_used + excluded.month_used ELSE c.month_used END,
    month_start = greatest(c.month_start, excluded.month_start),
    year_used = CASE WHEN excluded.year_start > c.year_start THEN excluded.year_used
                     WHEN excluded.year_start = c.year_start THEN c.year_used + excluded.year_used ELSE c.year_used END,
    year_start = greatest(c.year_start, excluded.year_start),
    cycle_used = CASE WHEN excluded.cycle_start > c.cycle_start THEN excluded.cycle_used
                      WHEN excluded.cycle_start = c.cycle_start THEN c.cycle_used + excluded.cycle_used ELSE c.cycle_used END,
    cycle_start = greatest(c.cycle_start, excluded.cycle_start),
    lifetime_used = c.lifetime_used + excluded.lifetime_used
