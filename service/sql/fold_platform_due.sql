-- fold_platform_due: whether what is about everybody is to be summed up now, which is then no longer noted.
UPDATE rollup_state SET platform_is_stale = false
WHERE platform_is_stale AND NOT EXISTS (SELECT FROM stale_rollups)
RETURNING true
