-- verify_platform: rows about everybody that are not what the users' own rows come to, row by row.
SELECT 'usage_daily_actions' AS figure, concat_ws(' ', day, action) AS place,
       CASE WHEN s.day IS NOT NULL THEN concat_ws(' ', s.uses, s.units, s.credits) END AS stored,
       CASE WHEN e.day IS NOT NULL THEN concat_ws(' ', e.uses, e.units, e.credits) END AS expected
FROM usage_daily_actions s
FULL JOIN (
    SELECT day, action, sum(uses) AS uses, sum(units) AS units, sum(credits) AS credits
    FROM usage_daily GROUP BY 1, 2
) e USING (day, action)
WHERE (coalesce(s.uses, 0), coalesce(s.units, 0), coalesce(s.credits, 0))
   <> (coalesce(e.uses, 0), coalesce(e.units, 0), coalesce(e.credits, 0))
UNION ALL
SELECT 'usage_users_by_last_day', concat_ws(' ', last_day, action), s.users::text, e.users::text
FROM usage_users_by_last_day s
FULL JOIN (SELECT action, last_day, count(*) AS users FROM usage_last_days GROUP BY 1, 2) e USING (action, last_day)
WHERE coalesce(s.users, 0) <> coalesce(e.users, 0)
