-- expire_holds: end open holds of one user, each at the instant at which it expires.
-- $1 uuid user   $2 text[] keys
UPDATE holds SET status = 'expired', ended_at = expires_at
WHERE user_id = $1 AND key = ANY ($2::text[]) AND status = 'open'
