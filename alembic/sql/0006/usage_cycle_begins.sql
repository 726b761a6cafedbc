-- usage_cycle_begins: the day and time of an anchor in a month, or in the month's last day; all in UTC.
-- month: its first instant.   Rule   quota.period._clamped_ms; change both or neither.
CREATE FUNCTION usage_cycle_begins(month timestamp, anchor timestamp) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    month
    + make_interval(days => least(extract(day FROM anchor),
                                  extract(day FROM month + interval '1 month' - interval '1 day'))::int - 1)
    + (anchor - date_trunc('day', anchor))
) AT TIME ZONE 'UTC'
