-- totals: what PostgreSQL has applied and set aside.
SELECT (SELECT count(*) FROM usage_logs) AS applied,
       (SELECT count(*) FROM quarantined_records) AS quarantined,
       (SELECT count(*) FROM users) AS users
