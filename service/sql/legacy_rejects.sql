-- legacy_rejects: why rows of legacy relations are kept aside, and how many of each relation for that reason.
SELECT substr(source, length('legacy:') + 1) AS source, reason, count(*) AS rows
FROM quarantined_records
WHERE source LIKE 'legacy:%'
GROUP BY 1, 2
ORDER BY 3 DESC, 1, 2
