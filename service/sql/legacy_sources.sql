-- legacy_sources: what was read of legacy relations, and what came of it; no rows where there were none.
SELECT name, rows, brought, rejected, units FROM allotment_legacy.sources ORDER BY name
