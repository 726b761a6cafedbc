-- counted_users: those of users whose stretches user_lifetime_stats has counted as they are, with the tiers in force.
-- $1 uuid[]: users
SELECT u.user_id FROM unnest($1::uuid[]) AS u (user_id)
WHERE NOT EXISTS (
    SELECT FROM subscriptions s
    WHERE s.user_id = u.user_id AND s.counted_at < (SELECT max(applied_at) FROM tiers)
)
