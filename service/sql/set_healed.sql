-- set_healed: note that Redis differed from what is stored here, and was dropped.
-- $1 uuid[] users   $2 text[] what of each differed: a feature, or null for what concerns all of them
-- Locked in the order in which workers lock these rows.
WITH drifted AS (
    SELECT f.id FROM feature_usage f
    WHERE f.user_id = ANY ($1::uuid[])
      AND EXISTS (
          SELECT FROM unnest($1::uuid[], $2::text[]) AS d(user_id, feature)
          WHERE d.user_id = f.user_id AND coalesce(d.feature, f.feature_name) = f.feature_name
      )
    ORDER BY f.user_id, f.feature_name
    FOR NO KEY UPDATE
)
UPDATE feature_usage f
SET sync_status = 'healed', last_synced_at = now(), discrepancy_count = f.discrepancy_count + 1
FROM drifted
WHERE f.id = drifted.id
