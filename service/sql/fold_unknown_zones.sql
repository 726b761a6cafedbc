-- fold_unknown_zones: time zones of users that this PostgreSQL does not know.
SELECT DISTINCT timezone FROM users
WHERE NOT EXISTS (SELECT FROM pg_timezone_names z WHERE z.name = users.timezone)
