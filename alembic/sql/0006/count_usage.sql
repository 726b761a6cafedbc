-- count_usage: log units of a feature as used now, and count them wherever the worker counts what it applies.
-- who: the user, made on the default tier if there is none   name: the feature   units: 1 to 2^53 - 1
-- details: a JSON object, or null   Returns the units that the user ever used of the feature.
-- Setting   allotment.auto_provision: off refuses a user who is not there; of a database, as AUTO_PROVISION is not seen here
--
-- What is used is not asked for here: no limit denies it, and it costs no credits.  Redis drops the user by the
-- note in stale_users, and its next decision loads what this has counted: a load that has read the user before
-- the commit loses its token with it, and one that reads it afterwards finds all of it (service.loading).
--
-- Locks are taken in the order in which a worker takes them: the user's row (shared; who moves the user to
-- another calendar waits), feature_usage, usage_counters, usage_windows.  The row of feature_usage has the
-- calls for a user and feature come one after the other, and the instant is that of having its lock: a later
-- call never counts in an earlier window.  A worker waits for that row, and with it all users of the shard: a session
-- that has counted and then does nothing with its transaction is ended.
CREATE FUNCTION count_usage(who uuid, name text, units bigint, details jsonb) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    member users%ROWTYPE;
    at timestamptz;
    record uuid;
    total bigint;
    lifetime bigint;
    idle_max CONSTANT text := '10s';
BEGIN
    IF who IS NULL THEN
        RAISE EXCEPTION 'user_id: expected the id of a user, not null' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF name IS NULL OR name COLLATE "C" !~ '^[a-z][a-z0-9_.:-]{0,99}$' THEN
        RAISE EXCEPTION 'feature: expected a lower-case letter and up to 99 of a-z, 0-9, _, ., colon and -, not %',
            coalesce(quote_literal(left(name, 200)), 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF units IS NULL OR units NOT BETWEEN 1 AND 9007199254740991 THEN
        RAISE EXCEPTION 'amount: expected an integer from 1 to 9007199254740991, not %', coalesce(units::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF jsonb_typeof(details) <> 'object' OR octet_length(details::text) > 16384
        OR jsonb_path_exists(details, 'strict $.**{8 to last} ? (@.type() == "object" || @.type() == "array")')
    THEN
        RAISE EXCEPTION 'metadata: expected a JSON object of at most 16 KiB and 8 levels, or null'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF current_setting('idle_in_transaction_session_timeout')::interval NOT BETWEEN '1 ms' AND idle_max::interval THEN
        PERFORM set_config('idle_in_transaction_session_timeout', idle_max, true);
    END IF;
    SELECT * INTO member FROM users WHERE id = who FOR KEY SHARE;
    IF NOT FOUND THEN
        IF NOT coalesce(nullif(current_setting('allotment.auto_provision', true), ''), 'on')::boolean THEN
            RAISE EXCEPTION 'unknown_user: there is no user %, and allotment.auto_provision is off', who
                USING ERRCODE = 'no_data_found', HINT = 'Make the user first: allotment user set USER --tier TIER';
        END IF;
        INSERT INTO users (id, tier, anchor)
        SELECT who, t.name, date_trunc('milliseconds', clock_timestamp())
        FROM tiers t WHERE t.is_default ORDER BY t.version DESC LIMIT 1
        ON CONFLICT DO NOTHING;
        SELECT * INTO member FROM users WHERE id = who FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there are no tiers yet, and so no default tier for a new user'
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Run: allotment tiers apply FILE';
        END IF;
    END IF;

    PERFORM FROM feature_usage f WHERE f.user_id = who AND f.feature_name = name FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO feature_usage (user_id, feature_name, usage_count, last_used)
        VALUES (who, name, 0, to_timestamp(0))
        ON CONFLICT DO NOTHING;
        PERFORM FROM feature_usage f WHERE f.user_id = who AND f.feature_name = name FOR NO KEY UPDATE;
    END IF;
    at := date_trunc('milliseconds', clock_timestamp());
    UPDATE feature_usage f
    SET usage_count = coalesce(f.usage_count, 0) + units, last_used = greatest(f.last_used, at),
        metadata = CASE WHEN at >= f.last_used THEN coalesce(details, f.metadata) ELSE f.metadata END
    WHERE f.user_id = who AND f.feature_name = name
    RETURNING f.usage_count INTO total;

    -- A UUIDv7, which is the key of the record too: a refund finds it by that.
    record := (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
               || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid;
    INSERT INTO usage_logs (id, user_id, action, amount, credits_consumed, metadata, created_at)
    VALUES (record, who, name, units, 0, details, at);
    -- Named, so that the rollups find it however many of them one transaction makes (models.UsageRun).
    INSERT INTO usage_runs (records, users, ids, instants) VALUES (1, ARRAY[who], ARRAY[record], ARRAY[at]);

    INSERT INTO usage_counters AS c (user_id, feature, hour_start, hour_used, day_start, day_used, week_start, week_used,
                                     month_start, month_used, year_start, year_used, cycle_start, cycle_used, lifetime_used)
    SELECT who, name, h.starts_at, units, d.starts_at, units, w.starts_at, units,
           m.starts_at, units, y.starts_at, units, b.starts_at, units, units
    FROM usage_period('hour', at, member.timezone, member.anchor, member.cycle_months) h
    CROSS JOIN usage_period('day', at, member.timezone, member.anchor, member.cycle_months) d
    CROSS JOIN usage_period('week', at, member.timezone, member.anchor, member.cycle_months) w
    CROSS JOIN usage_period('month', at, member.timezone, member.anchor, member.cycle_months) m
    CROSS JOIN usage_period('year', at, member.timezone, member.anchor, member.cycle_months) y
    CROSS JOIN usage_period('cycle', at, member.timezone, member.anchor, member.cycle_months) b
    ON CONFLICT (user_id, feature) DO UPDATE  -- as worker/sql/add_counters.sql does
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
                          WHEN excluded.month_start = c.month_start THEN c.month_used + excluded.month_used
                          ELSE c.month_used END,
        month_start = greatest(c.month_start, excluded.month_start),
        year_used = CASE WHEN excluded.year_start > c.year_start THEN excluded.year_used
                         WHEN excluded.year_start = c.year_start THEN c.year_used + excluded.year_used ELSE c.year_used END,
        year_start = greatest(c.year_start, excluded.year_start),
        cycle_used = CASE WHEN excluded.cycle_start > c.cycle_start THEN excluded.cycle_used
                          WHEN excluded.cycle_start = c.cycle_start THEN c.cycle_used + excluded.cycle_used
                          ELSE c.cycle_used END,
        cycle_start = greatest(c.cycle_start, excluded.cycle_start),
        lifetime_used = c.lifetime_used + excluded.lifetime_used
    RETURNING c.lifetime_used INTO lifetime;
    IF greatest(total, lifetime) > 9007199254740991 THEN  -- Redis counts in doubles, and would decide nothing any more
        RAISE EXCEPTION 'amount: % with the % of % that there are is more than 9007199254740991',
            units, greatest(total, lifetime) - units, name
            USING ERRCODE = 'numeric_value_out_of_range';
    END IF;

    -- The windows that run, and those that a limit of the tier counts in: where none runs, this use opens one.  It does
    -- not know of one that Redis has opened and nobody has applied yet, nor Redis of this one: they become one then.
    INSERT INTO usage_windows AS w (user_id, feature, seconds, ends_at, used)
    SELECT who, name, s.seconds, at + make_interval(secs => s.seconds), units
    FROM (
        SELECT k.seconds FROM usage_windows k WHERE k.user_id = who AND k.feature = name AND k.ends_at > at
        UNION
        SELECT substr(l.per, 8)::int FROM usage_limits_of(member.tier, name) l WHERE l.per LIKE 'window:%'
    ) s
    ORDER BY 3
    ON CONFLICT (user_id, feature, seconds) DO UPDATE  -- as worker/sql/add_windows.sql does
    SET used = CASE WHEN w.ends_at <= at THEN excluded.used
                    WHEN excluded.ends_at <= w.ends_at - make_interval(secs => w.seconds) THEN w.used
                    ELSE w.used + excluded.used END,
        ends_at = CASE WHEN w.ends_at <= at THEN excluded.ends_at
                       WHEN excluded.ends_at <= w.ends_at - make_interval(secs => w.seconds) THEN w.ends_at
                       ELSE least(w.ends_at, excluded.ends_at) END;

    INSERT INTO stale_users (user_id) VALUES (who);
    RETURN total;
END
$$
