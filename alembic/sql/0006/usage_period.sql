-- usage_period: the calendar period of a user that contains an instant; half-open, of a lifetime without an end.
-- per: hour, day, week, month, year, cycle or lifetime; anything else has no calendar, and gives nulls
-- The calendar is of a row of users: timezone, anchor, cycle_months.
-- Rule   quota.period.window_at; change both or neither.  A test holds the two together.
CREATE FUNCTION usage_period(
    per text, at timestamptz, timezone text, anchor timestamptz, cycle_months int,
    OUT starts_at timestamptz, OUT ends_at timestamptz
)
-- So dear that a plan asks whatever else it can before.
LANGUAGE plpgsql IMMUTABLE STRICT COST 1000 AS $$
DECLARE
    utc timestamp := at AT TIME ZONE 'UTC';
    zone text := usage_zone(timezone);
    shown timestamp := at AT TIME ZONE zone;
    anchored timestamp := date_trunc('milliseconds', anchor AT TIME ZONE 'UTC');
    shift interval := usage_zone_offset(at, zone);
    step interval;
    first timestamp;
    months int;
BEGIN
    IF per = 'lifetime' THEN
        starts_at := to_timestamp(0);
    ELSIF per = 'cycle' THEN
        months := (extract(year FROM utc) - extract(year FROM anchored)) * 12
            + extract(month FROM utc) - extract(month FROM anchored);
        months := ((months % cycle_months) + cycle_months) % cycle_months;  -- of the cycle that are past
        first := date_trunc('month', utc) - make_interval(months => months);
        step := make_interval(months => cycle_months);
        starts_at := usage_cycle_begins(first, anchored);
        IF starts_at > at THEN
            ends_at := starts_at;
            starts_at := usage_cycle_begins(first - step, anchored);
        ELSE
            ends_at := usage_cycle_begins(first + step, anchored);
        END IF;
    ELSIF per = 'hour' THEN
        -- The hour that clocks show, cut where their offset changes inside it.
        starts_at := at - (shown - date_trunc('hour', shown));
        ends_at := starts_at + interval '1 hour';
        IF usage_zone_offset(starts_at, zone) <> shift THEN
            starts_at := usage_offset_change(starts_at, at, zone);
        END IF;
        IF usage_zone_offset(ends_at - interval '1 second', zone) <> shift THEN
            ends_at := usage_offset_change(at, ends_at - interval '1 second', zone);
        END IF;
    ELSIF per IN ('day', 'week', 'month', 'year') THEN
        first := date_trunc(per, shown);
        step := ('1 ' || per)::interval;
        starts_at := usage_day_begins(first, zone);
        ends_at := usage_day_begins(first + step, zone);
        WHILE ends_at <= at LOOP  -- clocks went back over midnight: they show yesterday, but today has begun
            first := first + step;
            starts_at := ends_at;
            ends_at := usage_day_begins(first + step, zone);
        END LOOP;
    END IF;
END
$$
