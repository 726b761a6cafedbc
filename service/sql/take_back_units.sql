-- take_back_units: count units of a feature no more in the running periods that counted them.
-- $1 uuid user   $2 text feature   $3 bigint units
-- starts of the periods that counted them, timestamptz: $4 hour   $5 day   $6 week   $7 month   $8 year   $9 cycle
-- A period that has ended since then is not in the row any more.
UPDATE usage_counters
SET hour_used = CASE WHEN hour_start = $4 THEN greatest(0, hour_used - $3) ELSE hour_used END,
    day_used = CASE WHEN day_start = $5 THEN greatest(0, day_used - $3) ELSE day_used END,
    week_used = CASE WHEN week_start = $6 THEN greatest(0, week_used - $3) ELSE week_used END,
    month_used = CASE WHEN month_start = $7 THEN greatest(0, month_used - $3) ELSE month_used END,
    year_used = CASE WHEN year_start = $8 THEN greatest(0, year_used - $3) ELSE year_used END,
    cycle_used = CASE WHEN cycle_start = $9 THEN greatest(0, cycle_used - $3) ELSE cycle_used END,
    lifetime_used = greatest(0, lifetime_used - $3)
WHERE user_id = $1 AND feature = $2
