-- rules_version: the version of the rules in force.
SELECT max(version) FROM tiers
