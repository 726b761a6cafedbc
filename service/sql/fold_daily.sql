-- fold_daily: from `folded`, what is to be added by UTC day, into `folded_daily`.
-- $1 uuid[]: users of whom `folded` has everything, so that the days as they are stored are taken off it
INSERT INTO folded_daily
SELECT user_id, action, format, quality, day, sum(uses), sum(units), sum(credits)
FROM (
    SELECT user_id, action, format, quality, day, uses, units, credits FROM folded
    UNION ALL
    SELECT user_id, action, format, quality, day, -uses, -units, -credits
    FROM usage_daily WHERE user_id = ANY ($1::uuid[])
) parts
GROUP BY 1, 2, 3, 4, 5
HAVING sum(uses) <> 0 OR sum(units) <> 0 OR sum(credits) <> 0
