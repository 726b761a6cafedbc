-- usage_zone: the name by which PostgreSQL finds a time zone of users.timezone, or UTC where it has none of that name.
-- Its zone files may be older than Python's, or newer and without names of old.
-- With an exception block, and so not for parallel workers: neither is what calls it.
CREATE FUNCTION usage_zone(timezone text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    CASE timezone
        WHEN 'UTC' THEN RETURN 'UTC';
        -- PostgreSQL takes these names for abbreviations, which have no summer time.
        WHEN 'WET' THEN RETURN 'Europe/Lisbon';
        WHEN 'EET' THEN RETURN 'Europe/Athens';
        WHEN 'CET' THEN RETURN 'Europe/Brussels';
        WHEN 'MET' THEN RETURN 'Europe/Brussels';
        ELSE
            PERFORM to_timestamp(0) AT TIME ZONE timezone;
            RETURN timezone;
    END CASE;
EXCEPTION
    WHEN invalid_parameter_value THEN RETURN 'UTC';
END
$$
