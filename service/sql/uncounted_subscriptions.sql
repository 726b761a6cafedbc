-- uncounted_subscriptions: stretches that user_lifetime_stats has not counted since then, oldest first, locked.
-- $1 timestamptz: since when   $2 int: at most so many
-- One that is being changed is left to the next time: the change has it counted anew.
SELECT user_id, id FROM subscriptions
WHERE counted_at < $1
ORDER BY counted_at
LIMIT $2
FOR UPDATE SKIP LOCKED
