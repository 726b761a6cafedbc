-- add_users: users of admitted records that PostgreSQL no longer has (it was set back), on the default tier of now.
-- $1 uuid[] ids   $2 text[] external ids   $3 timestamptz: anchor, and when they were made
-- Without a subscription, a user has been on its tier since it was made.
INSERT INTO users (id, external_id, tier, anchor, created_at)
SELECT u.id, u.external_id, (SELECT name FROM tiers WHERE is_default ORDER BY version DESC LIMIT 1), $3, $3
FROM unnest($1::uuid[], $2::text[]) AS u(id, external_id)
ORDER BY u.id
ON CONFLICT DO NOTHING
