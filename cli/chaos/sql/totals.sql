-- totals: lines that callers were told of or that turned out admitted, rows that were applied, and what was set aside.
SELECT (SELECT count(*) FROM usage_logs) AS applied,
       (SELECT count(*) FROM quarantined_records) AS quarantined,
       (SELECT count(*) FROM holds) AS holds,
       (SELECT count(*) FROM holds WHERE status = 'expired') AS expired
