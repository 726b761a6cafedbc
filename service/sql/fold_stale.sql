-- fold_stale: users whose rollups have to be made anew, each with the last change of which this is known.
-- $1 int: at most so many
SELECT user_id, max(change) AS change FROM stale_rollups GROUP BY user_id ORDER BY max(change) LIMIT $1
