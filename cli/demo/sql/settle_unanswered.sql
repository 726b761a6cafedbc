-- settle_unanswered: take over from the logs what became of the calls that got no answer.
WITH open AS (DELETE FROM demo_ledger WHERE NOT certain RETURNING user_id, key)
INSERT INTO demo_ledger (user_id, key, line, feature, amount, cost_micro, verb)
SELECT g.user_id, g.key, g.line, g.feature, g.amount, g.cost_micro, 'record'
FROM (SELECT DISTINCT ON (user_id, key, line) * FROM demo_logged ORDER BY user_id, key, line) g
JOIN open USING (user_id, key)
