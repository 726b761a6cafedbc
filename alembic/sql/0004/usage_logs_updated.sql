-- usage_logs_updated: see note_changed_usage.
CREATE TRIGGER usage_logs_updated AFTER UPDATE ON usage_logs
REFERENCING OLD TABLE AS was NEW TABLE AS becomes
FOR EACH STATEMENT EXECUTE FUNCTION note_changed_usage()
