-- verify_rollup_rows: every rollup of users, row by row, as table, user, the rest of its key, and figures as JSON text.
-- $1 uuid[] users
SELECT figure, user_id, place, columns::text AS columns
FROM (
    SELECT 'usage_daily' AS figure, user_id,
           concat_ws(' ', day, action, nullif(format, ''), nullif(quality, '')) AS place,
           jsonb_build_object('uses', uses, 'units', units, 'credits', credits) AS columns
    FROM usage_daily WHERE user_id = ANY ($1::uuid[])
    UNION ALL
    SELECT 'usage_last_days', user_id, action, jsonb_build_object('last_day', last_day)
    FROM usage_last_days WHERE user_id = ANY ($1::uuid[])
    UNION ALL
    SELECT 'usage_last_30_days', user_id, NULL, jsonb_build_object('uses', uses, 'credits', credits)
    FROM usage_last_30_days WHERE user_id = ANY ($1::uuid[])
    UNION ALL
    SELECT 'user_active_days', user_id, day::text, jsonb_build_object('uses', uses)
    FROM user_active_days WHERE user_id = ANY ($1::uuid[])
    UNION ALL
    SELECT 'user_usage_features', user_id, concat_ws(' ', month, feature), jsonb_build_object('units', units, 'uses', uses)
    FROM user_usage_features WHERE user_id = ANY ($1::uuid[])
    UNION ALL
    SELECT 'user_usage', user_id, month::text, to_jsonb(m) - '{user_id,month}'::text[]
    FROM user_usage m WHERE user_id = ANY ($1::uuid[])
    UNION ALL
    SELECT 'user_lifetime_stats', user_id, NULL,
           to_jsonb(l) - '{user_id,created_at,updated_at}'::text[]
    FROM user_lifetime_stats l WHERE user_id = ANY ($1::uuid[])
) rollups
