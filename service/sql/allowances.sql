-- allowances: what tiers give by themselves, by version; a version that left a tier's allowance as it was has no row.
SELECT name, allowance_micro, allowance_every, floor(extract(epoch FROM applied_at) * 1000)::bigint AS applied_at_ms
FROM (
    SELECT *, row_number() OVER of_tier AS place,
           (allowance_micro, allowance_every)
               IS DISTINCT FROM (lag(allowance_micro) OVER of_tier, lag(allowance_every) OVER of_tier) AS changed
    FROM tiers
    WINDOW of_tier AS (PARTITION BY name ORDER BY version)
) AS versions
WHERE place = 1 OR changed
ORDER BY version
