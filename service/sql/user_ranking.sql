-- user_ranking (seed 003): who used most credits in the window of 30 days.
-- $1 int: at most so many
SELECT w.user_id, u.username, w.credits AS total_credits, w.uses AS total_actions
FROM usage_last_30_days w
JOIN users u ON u.id = w.user_id
ORDER BY w.credits DESC, w.user_id
LIMIT $1
