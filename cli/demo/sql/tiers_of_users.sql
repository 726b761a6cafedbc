-- tiers_of_users: which tier each user is on.
SELECT id, tier FROM users
