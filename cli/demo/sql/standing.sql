-- standing: a user as PostgreSQL has it: credits that active grants hold, and overage.
-- $1 uuid user   $2 timestamptz
SELECT u.tier, u.timezone, (extract(epoch FROM u.anchor) * 1000)::bigint AS anchor_ms, u.cycle_months, u.overage_micro,
       (SELECT coalesce(sum(left_micro), 0)::bigint
        FROM credit_grants g
        WHERE g.user_id = u.id AND g.effective_at <= $2
          AND (g.expires_at IS NULL OR g.expires_at > $2) AND (g.voided_at IS NULL OR g.voided_at > $2)) AS left_micro
FROM users u
WHERE u.id = $1
