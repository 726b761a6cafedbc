-- usage_day_begins: the first instant of a local date, or a later one where clocks skip it.
-- Rule   quota.period._day_begins; change both or neither.
CREATE FUNCTION usage_day_begins(midnight timestamp, timezone text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    -- Of a midnight that clocks skip, PostgreSQL takes the offset before; of one that comes twice, the second.
    found timestamptz := midnight AT TIME ZONE timezone;
    first timestamptz;
BEGIN
    IF found AT TIME ZONE timezone <> midnight THEN
        RETURN usage_offset_change(
            (midnight AT TIME ZONE 'UTC') - usage_zone_offset(found, timezone), found, timezone
        );
    END IF;
    -- Clocks go back by less than a day, so a day before they still show the old time.
    first := (midnight AT TIME ZONE 'UTC') - usage_zone_offset(found - interval '24 hours', timezone);
    IF first < found AND first AT TIME ZONE timezone = midnight THEN
        RETURN first;
    END IF;
    RETURN found;
END
$$
