-- update_feature_usage_timestamp (seed 004): the last use is now where a count went up, and nobody has said when.
CREATE FUNCTION update_feature_usage_timestamp() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE feature_usage SET last_used = clock_timestamp() WHERE id = NEW.id AND last_used < clock_timestamp();
    RETURN NULL;
END
$$
