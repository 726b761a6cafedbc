-- set_synced: note that Redis has of these users what is stored here.
-- $1 uuid[] users
-- A row that a worker is counting in is left to the next look: nobody waits for this note.
WITH free AS (
    SELECT id FROM feature_usage
    WHERE user_id = ANY ($1::uuid[])
    ORDER BY user_id, feature_name
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE feature_usage f
SET sync_status = 'synced', last_synced_at = now()
FROM free
WHERE f.id = free.id
