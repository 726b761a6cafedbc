-- rules_version: the version of the rules in force, and when it was applied; no row before the first `tiers apply`.
SELECT version, floor(extract(epoch FROM applied_at) * 1000)::bigint AS applied_at_ms
FROM tiers ORDER BY version DESC LIMIT 1
