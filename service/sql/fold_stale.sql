-- fold_stale: users whose rollups have to be made anew, each with the last change of which this is known.
-- $1 int: at most so many   $2 uuid[]: none of these
SELECT user_id, max(change) AS change FROM stale_rollups
WHERE user_id <> ALL ($2::uuid[])
GROUP BY user_id ORDER BY max(change) LIMIT $1
