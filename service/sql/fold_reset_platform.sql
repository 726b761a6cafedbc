-- fold_reset_platform: what everybody did by day, and how many users each day was the last of, by the users' own rows.
DELETE FROM usage_daily_actions;
INSERT INTO usage_daily_actions (day, action, uses, units, credits)
SELECT day, action, sum(uses), sum(units), sum(credits)
FROM usage_daily
GROUP BY 1, 2
HAVING sum(uses) <> 0 OR sum(units) <> 0 OR sum(credits) <> 0;
DELETE FROM usage_users_by_last_day;
INSERT INTO usage_users_by_last_day (action, last_day, users)
SELECT action, last_day, count(*) FROM usage_last_days GROUP BY 1, 2
