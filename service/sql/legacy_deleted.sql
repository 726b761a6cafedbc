-- legacy_deleted: how many rows went from each legacy table since it was read, with the rows that they referred to.
SELECT source, count(*) AS rows FROM allotment_legacy.deleted GROUP BY source
