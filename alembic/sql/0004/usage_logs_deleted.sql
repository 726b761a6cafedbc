-- usage_logs_deleted: see note_changed_usage.
CREATE TRIGGER usage_logs_deleted AFTER DELETE ON usage_logs
REFERENCING OLD TABLE AS was
FOR EACH STATEMENT EXECUTE FUNCTION note_changed_usage()
