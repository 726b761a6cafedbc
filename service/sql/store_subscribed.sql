-- store_subscribed: write what users' stretches come to into user_lifetime_stats, where it is not there yet.
-- $1 uuid[] users   $2 int[] months   $3 numeric[] revenue   $4 text[] highest tiers
INSERT INTO user_lifetime_stats AS l (user_id, months_subscribed, total_revenue, highest_tier_reached)
SELECT * FROM unnest($1::uuid[], $2::int[], $3::numeric[], $4::text[])
ORDER BY 1
ON CONFLICT (user_id) DO UPDATE
SET months_subscribed = excluded.months_subscribed,
    total_revenue = excluded.total_revenue,
    highest_tier_reached = excluded.highest_tier_reached,
    updated_at = now()
WHERE (l.months_subscribed, l.total_revenue, l.highest_tier_reached)
      IS DISTINCT FROM (excluded.months_subscribed, excluded.total_revenue, excluded.highest_tier_reached)
