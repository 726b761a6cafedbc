-- set_overage: what a user burnt past the last grant, as of an instant.
-- $1 uuid user   $2 bigint micro-credits   $3 timestamptz
UPDATE users SET overage_micro = $2, overage_at = $3 WHERE id = $1
