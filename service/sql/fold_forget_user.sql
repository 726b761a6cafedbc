-- fold_forget_user: the rollups of a user are as they should be, by what this snapshot knows of changes.
-- $1 uuid user
DELETE FROM stale_rollups WHERE user_id = $1
