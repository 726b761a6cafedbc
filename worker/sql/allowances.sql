-- allowances: what the tiers in force give by themselves, and since when they are in force.
SELECT name, allowance_micro, allowance_every,
       max(floor(extract(epoch FROM applied_at) * 1000)::bigint) OVER () AS applied_at_ms
FROM tiers
WHERE version = (SELECT max(version) FROM tiers)
