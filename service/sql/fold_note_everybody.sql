-- fold_note_everybody: have the rollups of every user made anew; what runs have not folded is in that.
-- After them, what is about everybody.
WITH runs AS (
    DELETE FROM usage_runs
), state AS (
    UPDATE rollup_state SET platform_is_stale = true
)
INSERT INTO stale_rollups (user_id)
SELECT id FROM users UNION SELECT user_id FROM user_lifetime_stats
ORDER BY 1
