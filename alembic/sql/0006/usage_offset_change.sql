-- usage_offset_change: the whole second in (before, after] from which the offset of a zone is that of after.
-- Rule   quota.period._offset_change; change both or neither.
CREATE FUNCTION usage_offset_change(before timestamptz, after timestamptz, timezone text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    since timestamptz := to_timestamp(floor(extract(epoch FROM before)));
    changed interval := usage_zone_offset(after, timezone);
    low int := 0;
    high int := ceil(extract(epoch FROM after - since));
    middle int;
BEGIN
    WHILE high - low > 1 LOOP  -- halves at most two days, in 18 rounds
        middle := (low + high) / 2;
        IF usage_zone_offset(since + make_interval(secs => middle), timezone) = changed THEN
            high := middle;
        ELSE
            low := middle;
        END IF;
    END LOOP;
    RETURN since + make_interval(secs => high);
END
$$
