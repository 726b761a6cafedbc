-- add_users: users of admitted records that PostgreSQL no longer has (it was set back), on the default tier of now.
-- $1 uuid[] ids   $2 text[] external ids   $3 timestamptz anchor
INSERT INTO users (id, external_id, tier, anchor)
SELECT u.id, u.external_id, (SELECT name FROM tiers WHERE is_default ORDER BY version DESC LIMIT 1), $3
FROM unnest($1::uuid[], $2::text[]) AS u(id, external_id)
ORDER BY u.id
ON CONFLICT DO NOTHING
