-- usage_zone_offset: how far the clocks of a time zone are ahead of UTC at an instant.
CREATE FUNCTION usage_zone_offset(at timestamptz, timezone text) RETURNS interval
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (at AT TIME ZONE timezone) - (at AT TIME ZONE 'UTC')
