-- fold_prune: drop the rows of users that say nothing any more.
-- $1 uuid[] users
WITH months AS (
    DELETE FROM user_usage WHERE user_id = ANY ($1::uuid[]) AND uses = 0
), last_days AS (
    DELETE FROM usage_users_by_last_day WHERE users = 0
), actions AS (
    DELETE FROM usage_daily_actions WHERE uses = 0 AND units = 0 AND credits = 0
)
DELETE FROM usage_daily WHERE user_id = ANY ($1::uuid[]) AND uses = 0 AND units = 0 AND credits = 0
