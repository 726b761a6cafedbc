-- usage_limits_of: the limits in force of a tier on a feature, else those of the tier on any feature.
-- Rule   quota.rules.Tier.limits_of
CREATE FUNCTION usage_limits_of(tier text, feature text) RETURNS SETOF tier_limits
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT l.*
FROM tier_limits l
WHERE l.version = (SELECT max(version) FROM tiers) AND l.tier = usage_limits_of.tier
  AND l.feature = CASE
      WHEN EXISTS (
          SELECT FROM tier_limits n
          WHERE n.version = (SELECT max(version) FROM tiers) AND n.tier = usage_limits_of.tier
            AND n.feature = usage_limits_of.feature
      ) THEN usage_limits_of.feature
      ELSE '*'
  END;
END
