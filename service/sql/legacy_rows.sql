-- legacy_rows: the rows that each legacy relation has now.
SELECT source, count(*) AS rows, count(*) FILTER (WHERE set_aside) AS rejected, coalesce(sum(units), 0) AS units
FROM allotment_legacy.again()
GROUP BY source
