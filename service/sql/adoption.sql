-- adoption: how many users have used each feature, and how much; the most used ones first.
-- $1 timestamptz: who used it since then used it lately
-- first_used_at is of the log of usage, whose index by action has it at one end; null where use is older than the log.
SELECT f.*, (SELECT min(l.created_at) FROM usage_logs l WHERE l.action = f.feature) AS first_used_at
FROM (
    SELECT feature_name AS feature,
           count(*) FILTER (WHERE usage_count > 0) AS users,
           count(*) FILTER (WHERE usage_count > 0 AND last_used >= $1) AS recent_users,
           coalesce(sum(usage_count), 0)::bigint AS units,
           max(last_used) FILTER (WHERE usage_count > 0) AS last_used_at
    FROM feature_usage
    WHERE user_id IS NOT NULL AND feature_name IS NOT NULL
    GROUP BY feature_name
) f
ORDER BY f.users DESC, f.feature
